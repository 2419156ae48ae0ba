"""The rows of a schedule while they are written: microbatches of a stage come in turn."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.schedule import PipelineSchedule


class Row:
    """The action list of one rank.

    Forwards and backwards of a stage take its microbatches in order; weights are taken in the order
    of the backwards that left them.

    Attributes:
        actions: the list so far.
    """

    def __init__(self) -> None:
        self.actions: list[Action] = []
        self._forwards, self._backwards = Counter[int](), Counter[int]()
        self._weights: deque[Action] = deque()

    def forward(self, stage: int, count: int = 1) -> None:
        """The forward of a stage's next microbatches."""
        for _ in range(count):
            self.actions.append(Action(stage, Work.FORWARD, self._forwards[stage]))
            self._forwards[stage] += 1

    def backward(self, stage: int, *, apart: bool = False) -> None:
        """The backward of a stage's next microbatch, apart from that of its weights if so asked."""
        number = self._backwards[stage]
        self._backwards[stage] += 1
        self.actions.append(Action(stage, Work.INPUT if apart else Work.BACKWARD, number))
        if apart:
            self._weights.append(Action(stage, Work.WEIGHT, number))

    def weight(self) -> bool:
        """The oldest weight that is left; whether there was one."""
        if self._weights:
            self.actions.append(self._weights.popleft())
            return True
        return False


def schedule_of(rows: Sequence[Row]) -> PipelineSchedule:
    """The schedule of all ranks."""
    return PipelineSchedule(tuple(tuple(row.actions) for row in rows))
