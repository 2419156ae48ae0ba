"""The bytes that an update takes, as planned and as measured."""

from __future__ import annotations

import functools
import gc
import itertools
import os
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import shardlang
from shardlang.api import Program
from shardlang.cost.composition import Kind, kinds_in, left_in
from shardlang.cost.effects import TensorType
from shardlang.cost.live import replayed
from shardlang.cost.meter import Meter
from shardlang.cost.pipeline.composition import kinds_on_rank
from shardlang.cost.pipeline.memory import accumulated_device_memory, device_memory
from shardlang.cost.pipeline.rank_memory import RankMemory
from shardlang.cost.replay import Replay
from shardlang.passes.step.update_cost import update_cost
from shardlang.plan import plan_of
from shardlang.runtime.module import held
from shardlang.runtime.optim import ShardedOptimizer
from shardlang.runtime.tensor import local
from shardlang.runtime.transport import Arriving
from shardlang.training.staged import StagedTrainee
from tests.cost.measured import arriving, step_of
from tests.runtime.prepared import prepare_step


class Deep(nn.Module):
    """Linears of uneven sizes, in a type of their own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        sizes = (12, 20, 9, 12)
        pairs = itertools.pairwise(sizes)
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=b != 9) for a, b in pairs)
        self.to(dtype)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shapes `b h`."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return {"loss": x.float().square().mean()}


SPLIT = 'param "layers.0.weight" [tp, _]\nparam "layers.1.weight" [_, tp]\n'
MASTER = "precision { master = f32 }\n"
SPECS = {
    "dp": ("d = 4", "f32", ""),
    "rmsprop, clipped": (
        "d = 4", "f32", "optimizer rmsprop(lr = 0.01, momentum = 0.9, clip = 0.1)\n",
    ),
    "all at once": ("d = 4", "f32", "optimizer adamw(lr = 0.01, foreach = true)\n"),
    "zero 1": ("d = 4", "f32", 'store optimizer "**" over d\n'),
    "zero 1, in narrow types": ("d = 4", "bf16", MASTER + 'store optimizer "**" over d\n'),
    "zero 2, in narrow types": ("d = 4", "bf16", MASTER + 'store gradients "**" over d\n'),
    "zero 3": ("d = 4", "f32", 'store "**" over d\n'),
    "zero 1 x tp": ("d = 2 tp = 2", "f32", SPLIT + 'store optimizer "**" over d\n'),
    "zero 1 x tp, nadam": (
        "d = 2 tp = 2", "f32",
        SPLIT + 'store optimizer "**" over d\noptimizer nadam(lr = 0.01)\n',
    ),
    "scaled": ("d = 4", "f16", "precision { master = f32  loss_scale = dynamic }\n"),
    "zero 2, microbatches": (
        "d = 4", "bf16", MASTER + 'accumulate 2\nstore gradients "**" over d\n',
    ),
    "wide sums": (
        "d = 4", "bf16", "precision { master = f32  reduce = f32 }\naccumulate 3\n",
    ),
    "stages, zero 1": (
        "p = 2 d = 2", "bf16",
        MASTER + 'pipeline p { split "layers"  microbatches 2 }\nstore optimizer "**" over d\n',
    ),
}  # fmt: skip
"""Mesh, the type of the model, and the rest."""

Bytes = tuple[int, int, int]
"""Those that the optimizer keeps, those of gradients, and the most that an update takes beside."""


def prepare() -> None:
    """Compile all of them."""
    for name in SPECS:
        prepare_step(program(name))


def updates() -> dict[str, tuple[Bytes, Bytes]]:
    """By spec, on this device: planned and measured."""
    return {name: _update(program(name)) for name in SPECS}


def planned_peak(name: str) -> tuple[int, int]:
    """The peak of the plan's update on the fullest device, and of its whole step."""
    memory = plan_of(program(name).compiled).memory
    return max(x.bytes for x in memory.moments if x.phase == "update"), memory.peak_bytes


@functools.cache
def program(name: str) -> Program:
    """A spec on a model."""
    mesh, dtype, rest = SPECS[name]
    path = Path(mkdtemp()) / "spec.shard"
    path.write_text(f"mesh {{ {mesh} }}\ninput x : {dtype}[16, 12] [d, _]\n{rest}")
    own = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    return shardlang.compile(path, model=lambda: Deep(own))


def _update(made: Program) -> tuple[Bytes, Bytes]:
    made.load()
    torch.manual_seed(0)
    shape = made.compiled.inputs[0].shape
    batch = {"x": torch.randn(shape, dtype=made.compiled.inputs[0].dtype)}
    trainee: Any = made._loaded()._trainee
    for _ in range(2):
        made.step(batch)
    measured = min(_measured(trainee, made.optimizer(), batch) for _ in range(3))
    return _planned(made, trainee, batch), measured


def _planned(made: Program, trainee: Any, batch: dict[str, Tensor]) -> Bytes:
    heap = _heap(made, trainee, batch)
    here = made.compiled.program.mesh.whole.coord(int(os.environ["RANK"]))
    mine = held(trainee.module).tensors()
    leaves = [leaf for leaf, _ in mine if leaf.name in heap.gradient_types]
    update = update_cost(made.local, leaves, made.compiled.rule, made.local.step.precision)
    kinds = kinds_on_rank(heap) if isinstance(heap, RankMemory) else kinds_in(heap)
    gradients = left_in(heap, kinds)[Kind.GRADIENTS]
    most = max(line.bytes for line in update.lines(here, heap.gradient_types))
    return update.state_bytes(here), gradients, most


def _heap(made: Program, trainee: Any, batch: dict[str, Tensor]) -> Replay | RankMemory:
    """Forward and backward on this device; gradients lie as it says."""
    heap: Replay | RankMemory
    rank = int(os.environ["RANK"])
    if isinstance(trainee, StagedTrainee):
        plan = trainee._staged(batch).pipeline(trainee._trained()).plan
        heap = device_memory(plan.step, plan.schedule, plan.order, plan.axis, rank)
    elif made.spec.accumulate is not None:
        along = trainee._for(batch)
        heap = accumulated_device_memory(along.step(trainee._trained()).step, rank)
    else:
        heap = replayed(step_of(made), made.local.mesh.coord(rank))
    trainee.backward(trainee.prepare(batch), made.optimizer().next_scale())
    grads = {name: p.grad for name, p in trainee.module.named_parameters()}
    found = {
        n: TensorType.of(local(x)) for n, x in grads.items() if x is not None and local(x).numel()
    }
    assert found == heap.gradient_types, f"{found} is not {heap.gradient_types}"
    made.optimizer().zero_grad()
    return heap


def _measured(trainee: Any, optimizer: ShardedOptimizer, batch: dict[str, Tensor]) -> Bytes:
    """Of one update, without the count of steps of what other stages have.

    Threads of gloo may hold tensors longer than we wait, so the least counts.
    """
    trainee.backward(trainee.prepare(batch), optimizer.next_scale())
    params = [tensor for _, tensor in held(trainee.module).tensors()]
    gc.collect()
    with Meter() as meter, patch.object(Arriving, "__init__", arriving), torch.no_grad():
        meter.count(local(p) for p in params)
        first = meter.live
        pairs = optimizer.inner.state.items()
        states = [x for part, one in pairs if part.numel() for x in one.values()]
        meter.count([*(x for x in states if isinstance(x, Tensor)), *optimizer.parts.tensors])
        kept, before = meter.live - first, meter.live
        meter.count(local(p.grad) for p in params if p.grad is not None)
        gradients, start = meter.live - before, meter.live
        optimizer.load()
        optimizer.norm()
        optimizer.step()
        most = meter.peak - start
    optimizer.zero_grad()
    return kept, gradients, most
