"""Schedules whose backward is whole: GPipe, 1F1B, and 1F1B with several stages for each rank."""

from __future__ import annotations

from shardlang.ir.pipeline.schedule import PipelineSchedule, ScheduleError
from shardlang.passes.schedules.rows import Row, schedule_of


def gpipe(ranks: int, microbatches: int) -> PipelineSchedule:
    """All forwards, then all backwards (Huang et al., 2019)."""
    rows = [Row() for _ in range(ranks)]
    for stage, row in enumerate(rows):
        row.forward(stage, microbatches)
        for _ in range(microbatches):
            row.backward(stage)
    return schedule_of(rows)


def one_f_one_b(ranks: int, microbatches: int) -> PipelineSchedule:
    """As many forwards as there are stages behind, then a backward and a forward in turn.

    A stage holds what `ranks - rank` microbatches need at most (Narayanan et al., 2019).
    """
    return schedule_of([_one_f_one_b(rank, ranks - rank, microbatches) for rank in range(ranks)])


def _one_f_one_b(stage: int, ahead: int, microbatches: int) -> Row:
    row, ahead = Row(), min(ahead, microbatches)
    row.forward(stage, ahead)
    for number in range(microbatches):
        row.backward(stage)
        row.forward(stage, int(number + ahead < microbatches))
    return row


def interleaved_1f1b(ranks: int, microbatches: int, virtual: int = 2) -> PipelineSchedule:
    """1F1B with several stages for each rank, in loops over the ranks (Narayanan et al., 2021).

    A rank computes about as many microbatches of one stage in turn as there are ranks, then as many
    of its next stage.

    Args:
        virtual: the stages of a rank.

    Raises:
        ScheduleError: the microbatches do not divide into such rounds.
    """
    rounds = max(1, microbatches // ranks)
    if microbatches % rounds:
        raise ScheduleError(
            f"interleaved_1f1b needs rounds of as many microbatches, and {microbatches} do not"
            f" divide by {rounds}: take a multiple of {ranks}"
        )
    at_once = microbatches // rounds
    return schedule_of(
        [_interleaved(rank, ranks, microbatches, virtual, at_once) for rank in range(ranks)]
    )


def _interleaved(rank: int, ranks: int, microbatches: int, virtual: int, at_once: int) -> Row:
    row, total = Row(), microbatches * virtual
    ahead = min(total, (virtual - 1) * at_once + 2 * (ranks - 1 - rank))
    for number in range(total + ahead):
        if number < total:
            row.forward(rank + ranks * (number // at_once % virtual))
        if number >= ahead:
            back = (number - ahead) // at_once % virtual
            row.backward(rank + ranks * (virtual - 1 - back))
    return row
