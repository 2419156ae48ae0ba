"""A pipeline on four processes gives what one process gives, under every schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from spawn import in_two_jobs, spawn
from staged import FEW, STAGED, program
from stages_on_ranks import trained as trained_alone

from shardlang.ir.mesh import Mesh
from shardlang.plan.collect import plan_of
from shardlang.plan.stage_types import PipelinePlan
from shardlang.plan.types import CollectiveRow, Plan
from tests.broad import sampled

Ran = Callable[[str], list[Any]]

COUNTED = [name for name in STAGED if name != "zb_h1, gradients"]
"""Those that share no number out of a bucket of two, which looks like half of a reduce-scatter."""


@pytest.fixture(scope="module")
def ran_with(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Every rank of the job that runs a spec."""

    def run(names: list[str]) -> list[Any]:
        out = tmp_path_factory.mktemp("ranks")
        given = {"SCRATCH": str(out), "NAMES": "; ".join(names)}
        return spawn("stages_on_ranks:everything", 4, out, 300, prepared=1, **given)

    return in_two_jobs(STAGED, FEW, run)


@pytest.fixture(scope="module")
def ran(ran_with: Ran) -> list[Any]:
    return ran_with("1f1b")


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return trained_alone(program("plain"))


@pytest.mark.parametrize("name", sampled(STAGED, FEW))
def test_steps_are_those_of_one_process(ran_with: Ran, alone: dict[str, Any], name: str) -> None:
    for rank in ran_with(name):
        mine = rank[name]
        for what in ("losses", "norms", "evaluated", "forward"):
            assert mine[what] == pytest.approx(alone[what], rel=1e-10), what
        for what in ("params", "buffers", "states"):
            assert mine[what].keys() == alone[what].keys()
            torch.testing.assert_close(mine[what], alone[what], rtol=1e-8, atol=1e-11)
        assert torch.equal(mine["draws"], alone["draws"])


def test_each_rank_holds_its_stages_alone(ran: list[Any], alone: dict[str, Any]) -> None:
    """But for numbers, which lie everywhere."""
    numbers = {f"layers.{i}.scale" for i in range(4)}
    held = [rank["1f1b"]["held"] - numbers for rank in ran]
    assert set.union(*held) | numbers == set(alone["params"])
    assert sum(map(len, held)) == len(alone["params"]) - 4
    assert all(f"layers.{i}.up.weight" in names for i, names in enumerate(held))


def test_a_call_of_the_module_is_refused(ran: list[Any]) -> None:
    assert [rank["refused"] for rank in ran] == ["SH0645"] * 4


def test_a_checkpoint_goes_on_under_another_depth(ran: list[Any], alone: dict[str, Any]) -> None:
    """From four stages to a V of two ranks, with the states of dropout and of the optimizer."""
    for rank in ran:
        assert rank["moved"] == pytest.approx(alone["losses"][: len(rank["moved"])], rel=1e-10)


@pytest.mark.parametrize("name", sampled(STAGED, FEW))
def test_the_peak_is_the_planned_one(ran_with: Ran, name: str) -> None:
    """To the byte, on every rank: of the whole step, and of what follows the last action."""
    for rank in ran_with(name):
        planned, measured = rank[name]["peaks"]
        assert measured == planned


Call = tuple[str, tuple[int, ...], int]
"""What a rank sends: the collective or a transfer, the ranks of the group, and bytes."""


@pytest.mark.parametrize("name", sampled(COUNTED, FEW))
def test_a_step_makes_the_calls_of_its_plan(ran_with: Ran, name: str) -> None:
    """Kind, group and bytes of all; what is done once for the whole step is so in this order."""
    made = program(name)
    mesh, plan = made.local.mesh, plan_of(made.compiled)
    assert plan.pipeline is not None
    for rank, found in enumerate(ran_with(name)):
        own, sent = mesh.coord(rank)[plan.pipeline.axis], found[name]["sent"]
        calls = [call(row, mesh, rank) for row in of_rank(plan.calls(), plan.pipeline, own)]
        assert Counter(sent) == Counter([*calls, *transfers(plan.pipeline, mesh, rank)])
        once = [call(row, mesh, rank) for row in of_rank(done_once(plan), plan.pipeline, own)]
        assert [one for one in sent if one[0] != "transfer"][-len(once) :] == once
        assert len(once) > 8


def of_rank(
    rows: Iterable[CollectiveRow], pipeline: PipelinePlan, rank: int
) -> Iterator[CollectiveRow]:
    """Those of the stages of a rank, and those of all."""
    rank_of = pipeline.schedule.rank_of()
    yield from (row for row in rows if row.stage is None or rank_of[row.stage] == rank)


def done_once(plan: Plan) -> Iterator[CollectiveRow]:
    """The rows of calls that are not those of each microbatch."""
    for part in plan.stretches:
        if part.times == 1:
            yield from plan.collectives[part.first : part.end]


def call(row: CollectiveRow, mesh: Mesh, rank: int) -> Call:
    """One call of a row, as a rank takes part in it."""
    (ranks,) = (sorted(x) for x in mesh.groups(mesh.named(row.axes)) if rank in x)
    return row.op, tuple(ranks), row.bytes // row.count


def transfers(pipeline: PipelinePlan, mesh: Mesh, rank: int) -> Iterator[Call]:
    """What a rank sends to other stages."""
    coord, rank_of = mesh.coord(rank), pipeline.schedule.rank_of()
    for row in pipeline.sent_by(coord[pipeline.axis]):
        there = {**coord, pipeline.axis: rank_of[row.target]}
        (other,) = (i for i in range(mesh.devices) if mesh.coord(i) == there)
        yield from [("transfer", tuple(sorted((rank, other))), row.bytes)] * row.count
