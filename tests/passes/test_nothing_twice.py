"""What a model computes twice is computed and reduced once, with the values of the plain model."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

import shardlang
from shardlang.api import Program
from shardlang.plan.collect import plan_of
from shardlang.plan.moments import Phase
from tests.passes import once_models as models

SPLIT = 'mesh { tp = 3 }\ninput x : f64[5, 6] [_, _]\nparam "up.weight" [tp, _]\n'
CASES: dict[str, tuple[Callable[[], nn.Module], str, dict[str, int]]] = {
    "batch norm": (
        models.normed,
        "mesh { dp = 3 }\ninput x : f64[70, 6] [dp, _]\n",
        {"forward all_reduce": 3, "backward all_reduce": 3},
    ),
    "cross-entropy and z-loss": (
        models.routed,
        'mesh { tp = 3 }\ninput ids, labels : i64[5] below 10 [_]\nparam "head.weight" [tp, _]\n',
        {"forward all_reduce": 3, "backward all_reduce": 1},
    ),
    "sums": (models.summed, SPLIT, {"forward all_reduce": 2, "backward all_reduce": 1}),
}
"""Model, spec and calls; a sum of a scalar loss is one of them."""


def program(tmp_path: Path, build: Callable[[], nn.Module], text: str) -> Program:
    """A compiled spec, which is proven."""
    path = tmp_path / "spec.shard"
    path.write_text(text)
    made = shardlang.compile(path, model=build)
    report = made.verify()
    assert report.ok, report.first
    assert max(report.gradients.values()) < 1e-12
    return made


def calls(made: Program) -> dict[str, int]:
    """How many calls of each kind forward and backward make."""
    rows = [row for row in plan_of(made.compiled).collectives if row.phase is not Phase.UPDATE]
    return dict(Counter(f"{row.phase} {row.op}" for row in rows))


@pytest.mark.parametrize("name", CASES)
def test_reductions_are_not_repeated(name: str, tmp_path: Path) -> None:
    build, text, wanted = CASES[name]
    assert calls(program(tmp_path, build, text)) == wanted


def test_indices_that_nobody_reads_are_not_sent(tmp_path: Path) -> None:
    made = program(tmp_path, functools.partial(models.largest, "detached"), SPLIT)
    assert calls(made) == {"forward all_reduce": 2}


@pytest.mark.parametrize("how", ["largest", "least"])
def test_the_gradient_of_one_of_several_largest_goes_to_the_first(how: str, tmp_path: Path) -> None:
    program(tmp_path, functools.partial(models.largest, how), SPLIT)


@pytest.mark.parametrize("how", ["rotary", "masks", "distances", "buffers"])
def test_tables_are_made_by_every_device_for_itself(how: str, tmp_path: Path) -> None:
    """The sequence is split: keys and values are gathered, and the loss is added up."""
    text = "mesh { sp = 3 }\ninput x : f64[2, 8, 6] [_, sp, _]\n"
    made = program(tmp_path, functools.partial(models.tabled, how), text)
    moved = {"forward all_gather": 2, "forward all_reduce": 1}
    assert calls(made) == {**moved, "backward reduce_scatter": 2, "backward all_reduce": 1}
    lies = {leaf.name: str(leaf.layout) for leaf in made.local.leaves}
    read = how == "buffers"
    assert (lies["mask"], lies["table"]) == (
        ("[8@sp, 8]", "[8@sp, 6]") if read else ("[8, 8]", "[8, 6]")
    )
