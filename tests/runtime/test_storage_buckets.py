"""Stored parameters travel block by block: in the plan, in the simulator, and between processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spawn import spawn
from stored import frozen, perceptron, stacked, untied
from torch import nn

import shardlang
from shardlang.api import Program
from shardlang.ir.leaf import LeafKind
from shardlang.plan.collect import plan_of

MESHES = {
    "uneven": ("fsdp = 4", "fsdp", "fsdp"),
    "hybrid": ("dp = 2 fsdp = 2", "dp*fsdp", "fsdp"),
    "two axes": ("dp = 2 fsdp = 2", "dp*fsdp", "dp*fsdp"),
    "whole batch": ("dp = 2 fsdp = 2", "dp", "fsdp"),
    "tensor parallel": ("fsdp = 2 tp = 2", "fsdp", "fsdp"),
}
SPLIT = 'param "blocks.*.up.weight" [tp, _]\nparam "blocks.*.down.weight" [_, tp]\n'


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes sent."""
    return spawn("buckets_on_ranks:everything", 2, tmp_path_factory.mktemp("ranks"), 240)


def program(
    tmp_path: Path, mesh: str, build: Callable[[], nn.Module], again: str = "", rows: int = 9
) -> Program:
    """A model whose parameters are all stored over an axis of the mesh."""
    axes, batch, store = MESHES[mesh]
    text = f"mesh {{ {axes} }}\ninput ids, labels : i64[{rows}] below 7 [{batch}]\n"
    text += SPLIT * (mesh == "tensor parallel") + f'store "**" over {store} {again}\n'
    path = tmp_path / "spec.shard"
    path.write_text(text)
    return shardlang.compile(path, model=build)


def calls(made: Program) -> dict[str, int]:
    """The calls of a step with parameters and their gradients: `forward all_gather` to how many."""
    found: Counter[str] = Counter()
    parameters = {leaf.name for leaf in made.local.leaves if leaf.kind is LeafKind.PARAM}
    for row in plan_of(made.compiled).collectives:
        if parameters.issuperset(row.tensors):
            found[f"{row.phase} {row.op}"] += row.count
    return dict(found)


CASES = {
    "uneven": ("uneven", "", stacked, (4, 0, 4)),
    "gathered again": ("uneven", "regather", stacked, (4, 4, 4)),
    "frozen": ("uneven", "regather", frozen, (4, 4, 3)),
    "hybrid": ("hybrid", "", stacked, (4, 0, 4)),
    "hybrid, frozen": ("hybrid", "regather", frozen, (4, 4, 3)),
    "two axes": ("two axes", "regather", untied, (8, 8, 8)),
    "tensor parallel": ("tensor parallel", "regather", frozen, (4, 4, 3)),
}
"""Mesh, `regather` or not, model; gathers forward, again backward, and reduce-scatters."""


@pytest.mark.parametrize("case", CASES)
def test_one_call_for_each_block_and_one_outside(case: str, tmp_path: Path) -> None:
    mesh, again, build, counts = CASES[case]
    made = program(tmp_path, mesh, build, again)
    report = made.verify()
    assert report.ok, report.first
    assert max(report.gradients.values()) < 1e-12
    names = ("forward all_gather", "backward all_gather", "backward reduce_scatter")
    assert tuple(calls(made).get(name, 0) for name in names) == counts


def test_without_a_sum_gradients_are_cut_from_the_whole_one(tmp_path: Path) -> None:
    made = program(tmp_path, "whole batch", untied)
    assert made.verify().ok
    assert calls(made) == {"forward all_gather": 4, "backward all_reduce": 1}


def test_a_small_perceptron_is_one_bucket(tmp_path: Path) -> None:
    path = tmp_path / "spec.shard"
    path.write_text('mesh { fsdp = 2 }\ninput x : f64[5, 6] [fsdp, _]\nstore "**" over fsdp\n')
    made = shardlang.compile(path, model=perceptron)
    assert made.verify().ok
    ops = [row.op for row in plan_of(made.compiled).collectives]
    assert ops == ["all_gather", "all_reduce", "reduce_scatter", "all_reduce"]


def test_on_processes_a_llama_sends_what_fsdp2_sends(ran: list[dict[str, Any]]) -> None:
    for found in ran:
        (without_gradient, forward, backward), gap = found["llama"]
        assert gap < 1e-12
        assert sorted(count for _, count in forward.items()) == [1, 4]
        assert without_gradient == forward
        assert [forward, backward] == found["FSDP2"]


@pytest.mark.parametrize(("name", "scatters"), [("stacked", 4), ("frozen", 3)])
def test_on_processes_blocks_are_gathered_once_each_way(
    name: str, scatters: int, ran: list[dict[str, Any]]
) -> None:
    for found in ran:
        (_, forward, backward), gap = found[name]
        assert gap < 1e-12
        assert kinds(forward) == {"gather": 4}
        assert kinds(backward) == {"gather": 4, "scatter": scatters}


def kinds(sent: Counter[tuple[str, int]]) -> dict[str, int]:
    """How many calls of each kind."""
    found: Counter[str] = Counter()
    for (kind, _), count in sent.items():
        found[kind] += count
    return dict(found)
