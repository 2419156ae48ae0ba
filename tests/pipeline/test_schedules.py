"""Schedules of pipelines: beside torch's own, in length and in what a rank holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shardlang.cost.timeline import alike, timeline
from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.schedule import PipelineSchedule, ScheduleError
from shardlang.passes.schedules.dualpipe_v import dualpipe_v
from shardlang.passes.schedules.plain import gpipe, interleaved_1f1b, one_f_one_b
from shardlang.passes.schedules.zero_bubble import v_half, zb_h1, zbv
from tests.pipeline.theirs import theirs

SIZES = [(2, 2), (2, 8), (3, 6), (4, 4), (4, 8), (4, 12)]
Make = Callable[[int, int], PipelineSchedule]
ALL: dict[str, Make] = {
    "gpipe": gpipe, "1f1b": one_f_one_b, "interleaved": interleaved_1f1b, "zb_h1": zb_h1,
    "zbv": zbv, "v_half": v_half, "dualpipe_v": lambda p, m: dualpipe_v(p, max(m, 2 * p)),
}  # fmt: skip


def held(schedule: PipelineSchedule, rank: int) -> int:
    """The most activations of one microbatch in one stage that lie on a rank at once."""
    change = {Work.FORWARD: 1, Work.BACKWARD: -1, Work.INPUT: 0, Work.WEIGHT: -1}
    now = most = 0
    for action in schedule.ranks[rank]:
        now += change[action.work]
        most = max(most, now)
    return most


def rows(schedule: PipelineSchedule) -> list[list[str]]:
    return [[str(action) for action in actions] for actions in schedule.ranks]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_every_schedule_can_be_run_and_written(name: str, ranks: int, microbatches: int) -> None:
    made = ALL[name](ranks, microbatches)
    assert len(timeline(made, alike).order) == len(list(made))
    assert PipelineSchedule.from_csv(made.to_csv()) == made


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_lists_are_those_of_torch(ranks: int, microbatches: int) -> None:
    assert rows(interleaved_1f1b(ranks, microbatches)) == theirs(
        "Interleaved1F1B", ranks, microbatches, 2
    )
    m = max(microbatches, 2 * ranks)
    assert rows(dualpipe_v(ranks, m)) == theirs("DualPipeV", ranks, m, 2)


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_zbv_is_no_longer_than_that_of_torch_and_holds_no_more(
    ranks: int, microbatches: int
) -> None:
    ours = zbv(ranks, microbatches)
    text = "\n".join(",".join(row) for row in theirs("ZBVZeroBubble", ranks, microbatches, 2))
    their = PipelineSchedule.from_csv(text)
    assert timeline(ours, alike).makespan <= timeline(their, alike).makespan
    for rank in range(ranks):
        assert held(ours, rank) <= max(held(their, rank) for rank in range(ranks))


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_bubbles_are_those_of_the_formulas(ranks: int, microbatches: int) -> None:
    bubble = (ranks - 1) / microbatches
    assert timeline(gpipe(ranks, microbatches), alike).bubble == pytest.approx(bubble)
    assert timeline(one_f_one_b(ranks, microbatches), alike).bubble == pytest.approx(bubble)
    if microbatches % ranks == 0:
        made = interleaved_1f1b(ranks, microbatches)
        assert timeline(made, alike).bubble == pytest.approx(bubble / 2)
    plain = timeline(one_f_one_b(ranks, microbatches), alike)
    assert timeline(zb_h1(ranks, microbatches), alike).bubble < plain.bubble
    assert timeline(zbv(ranks, microbatches), alike).bubble < plain.bubble


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_what_a_rank_holds(ranks: int, microbatches: int) -> None:
    for rank in range(ranks):
        assert held(one_f_one_b(ranks, microbatches), rank) == min(ranks - rank, microbatches)
        assert held(zb_h1(ranks, microbatches), rank) <= ranks
        assert held(zbv(ranks, microbatches), rank) <= 2 * ranks
        assert held(v_half(ranks, microbatches), rank) <= ranks
        assert held(gpipe(ranks, microbatches), rank) == microbatches


def test_ranks_that_wait_for_each_other_are_named() -> None:
    first = (Action(0, Work.BACKWARD, 0), Action(0, Work.FORWARD, 0))
    last = (Action(1, Work.FORWARD, 0), Action(1, Work.BACKWARD, 0))
    with pytest.raises(ScheduleError) as error:
        timeline(PipelineSchedule((first, last)), alike)
    assert "rank 0 waits for `0F0` before `0B0`" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0X0", "row 1, column 2: `0X0` is no action"),
        ("0F0\n0B0", "stage 0 is on rank 0 and on rank 1"),
        ("0F0,0F0,0B0", "`0F0` is there twice"),
        ("0F0,0I0", "a part of the backward of microbatch 0 in stage 0 is missing"),
        ("0F0,0B0,0I0", "is there as a whole and in parts"),
        ("0F0,0B0,0F1", "the backward of microbatch 1 in stage 0 is missing"),
        ("", "every rank needs an action"),
    ],
)
def test_what_is_no_schedule_is_refused(text: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message.replace("(", r"\(")):
        PipelineSchedule.from_csv(text)
