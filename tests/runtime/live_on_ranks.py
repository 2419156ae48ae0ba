"""The most bytes that each device has alive in a step, as predicted and as measured."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from tempfile import mkdtemp

from stored import stacked

import shardlang
from shardlang.api import Program
from shardlang.cost.live import replayed
from tests.cost.measured import measured_peak, step_of
from tests.runtime.prepared import prepare_step

LLAMA = Path(__file__).parents[2] / "examples" / "llama" / "fsdp_tp.shard"

SPLIT = 'param "blocks.*.up.weight" [tp, _]\nparam "blocks.*.down.weight" [_, tp]\n'
SPECS = {
    "fsdp": 'mesh { d = 4 }\ninput ids, labels : i64[9] below 7 [d]\nstore "**" over d\n',
    "regather": "mesh { d = 4 }\ninput ids, labels : i64[9] below 7 [d]\n"
    'store "**" over d regather\n',
    "dp x tp": "mesh { d = 2 tp = 2 }\ninput ids, labels : i64[9] below 7 [d]\n" + SPLIT,
    "few rows": "mesh { d = 4 }\ninput ids, labels : i64[4] below 7 [d]\n",
    "gradients in parts": "mesh { d = 4 }\ninput ids, labels : i64[8] below 7 [d]\n"
    'store gradients "**" over d\n',
    "states in parts": "mesh { d = 4 }\ninput ids, labels : i64[8] below 7 [d]\n"
    'store optimizer "**" over d\n',
    "recompute": "mesh { d = 2 tp = 2 }\ninput ids, labels : i64[9] below 7 [d]\n"
    + SPLIT
    + 'recompute "blocks.*"\n',
}


def peaks() -> dict[str, dict[str, int]]:
    """By spec, in `predicted` and in `measured`."""
    return {
        "predicted": {name: _predicted(one) for name, one in programs().items()},
        "measured": {name: measured_peak(one, steps=2) for name, one in programs().items()},
    }


def prepare() -> None:
    """Compile all of them."""
    for one in programs().values():
        prepare_step(one)


@functools.cache
def programs() -> dict[str, Program]:
    """By name."""
    made = {name: _program(text) for name, text in SPECS.items()}
    return {**made, "llama, fsdp x tp": shardlang.compile(LLAMA)}


def _program(text: str) -> Program:
    path = Path(mkdtemp()) / "spec.shard"
    path.write_text(text)
    return shardlang.compile(path, model=stacked)


def _predicted(program: Program) -> int:
    here = program.local.mesh.coord(int(os.environ["RANK"]))
    return replayed(step_of(program), here).peak
