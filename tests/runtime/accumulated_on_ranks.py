"""The bytes that a step of several microbatches has alive, as planned and as measured."""

from __future__ import annotations

import functools
import gc
import os
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import torch
from stored import stacked
from torch import Tensor

import shardlang
from shardlang.api import Program
from shardlang.cost.meter import Meter
from shardlang.cost.pipeline.memory import accumulated_device_memory
from shardlang.plan import plan_of
from shardlang.runtime.transport import Arriving
from tests.cost.measured import arriving
from tests.runtime.prepared import prepare_step

DATA = "input ids, labels : i64[{rows}] below 7 [{axes}]\n"
SPLIT = 'param "blocks.*.up.weight" [tp, _]\nparam "blocks.*.down.weight" [_, tp]\n'
SPECS = {
    "one device": ("d = 1", "d", 8, "accumulate 2"),
    "one device, eight": ("d = 1", "d", 32, "accumulate 8"),
    "dp": ("d = 4", "d", 16, "accumulate 2"),
    "dp, uneven": ("d = 4", "d", 19, "accumulate 2"),
    "dp, eight": ("d = 4", "d", 32, "accumulate 8"),
    "zero 1": ("d = 4", "d", 16, 'accumulate 2\nstore optimizer "**" over d'),
    "zero 2": ("d = 4", "d", 16, 'accumulate 2\nstore gradients "**" over d'),
    "zero 3": ("d = 4", "d", 16, 'accumulate 2\nstore "**" over d'),
    "zero 3, eight": ("d = 4", "d", 32, 'accumulate 8\nstore "**" over d'),
    "zero 3, regather": ("d = 4", "d", 16, 'accumulate 2\nstore "**" over d regather'),
    "fsdp x tp": ("d = 2 tp = 2", "d", 16, f'accumulate 2\n{SPLIT}store "**" over d'),
    "recompute": ("d = 2 tp = 2", "d", 16, f'accumulate 2\n{SPLIT}recompute "blocks.*"'),
    "zero 3, recompute": (
        "d = 4", "d", 32, 'accumulate 8\nstore "**" over d\nrecompute "blocks.*"',
    ),
}  # fmt: skip
"""Mesh, axes of the batch, rows, and the rest."""


ALONE = [name for name, (mesh, *_) in SPECS.items() if mesh == "d = 1"]
"""Those of one device."""

APART = [name for name in SPECS if name not in ALONE]
FEW = ("dp, uneven", "zero 2", "zero 3, regather", "fsdp x tp", "zero 3, recompute")
"""Those of four devices, and of them what `make test` runs."""

Bytes = tuple[int, int]
"""The most that lie there, and those of the gradients when all is done."""

Peaks = tuple[Bytes, Bytes]
"""Of a device, planned and measured."""


def prepare() -> None:
    """Compile what runs on four devices."""
    for name in names():
        prepare_step(program(name))


def names() -> list[str]:
    """The specs of this job."""
    return os.environ["NAMES"].split("; ")


def peaks_on_ranks() -> dict[str, Peaks]:
    """By spec of this job, on this device."""
    return {name: peaks(name) for name in names()}


def fullest(name: str) -> Bytes:
    """Of the fullest device, as the plan says it."""
    memory = plan_of(program(name).compiled).memory
    return memory.peak_bytes - memory.optimizer_bytes, memory.gradients_bytes


@functools.cache
def program(name: str) -> Program:
    """A spec on a model."""
    mesh, axes, rows, rest = SPECS[name]
    path = Path(mkdtemp()) / "spec.shard"
    path.write_text(f"mesh {{ {mesh} }}\n{DATA.format(rows=rows, axes=axes)}{rest}\n")
    return shardlang.compile(path, model=stacked)


def peaks(name: str) -> Peaks:
    """Of a spec, on this device."""
    gc.freeze()  # collections look at no older object, which costs a second in a long suite
    made = program(name)
    made.load()
    trainee: Any = made._loaded()._trainee
    rows = made.compiled.inputs[0].shape[0]
    torch.manual_seed(0)
    batch = {name: torch.randint(0, 7, (rows,)) for name in ("ids", "labels")}
    along = trainee._for(batch)
    step = along.step(trainee._trained())
    rank = int(os.environ.get("RANK", "0"))
    planned = accumulated_device_memory(step.step, rank)
    measured = min(_measured(trainee, along, step, batch) for _ in range(3))
    gradients = sum(planned.storages[number].bytes for number in planned.gradients)
    return (planned.peak, gradients), measured


def _measured(trainee: Any, along: Any, step: Any, batch: dict[str, Tensor]) -> Bytes:
    """Of one step; threads of gloo may hold tensors longer than we wait, so the least counts."""
    given = [
        {
            x.name: _own(trainee._leaf(x, batch, at, along), x.name in batch)
            for x in along.program.leaves
        }
        for at in step.coords
    ]
    gc.collect()
    with Meter() as meter, patch.object(Arriving, "__init__", arriving), torch.no_grad():
        meter.count([x for one in given for x in one.values()])
        gradients = step(given).gradients.values()
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in gradients}
    return meter.peak, sum(storages.values())


def _own(x: Tensor, given: bool) -> Tensor:
    """An input in memory of its own, apart from the whole batch."""
    return x.clone() if given else x
