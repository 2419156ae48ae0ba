"""How many microbatches lie on a rank between their forward and the end of their backward."""

from __future__ import annotations

from shardlang.ir.pipeline.action import Work
from shardlang.ir.pipeline.schedule import PipelineSchedule


def in_flight(schedule: PipelineSchedule) -> tuple[int, ...]:
    """Of every rank, the most microbatches whose activations lie there at once.

    A microbatch counts once for each of the rank's stages. It comes with its forward and goes with
    its backward, or with the gradients of its weights where these are made apart. 1F1B has
    `ranks - rank` at most (Narayanan et al., 2019).
    """
    return tuple(_most(works) for works in _works(schedule))


def _works(schedule: PipelineSchedule) -> list[list[Work]]:
    return [[action.work for action in actions] for actions in schedule.ranks]


def _most(works: list[Work]) -> int:
    now = most = 0
    for work in works:
        now += work is Work.FORWARD
        most = max(most, now)
        now -= work in (Work.BACKWARD, Work.WEIGHT)
    return most
