"""Schedules of pipelines: the action list of every rank, in torch's text and checked."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shardlang.ir.pipeline.action import Action, Work

ActionList = tuple[Action, ...]


class ScheduleError(ValueError):
    """A schedule that is no order in which a step can be computed."""


@dataclass(frozen=True, slots=True)
class PipelineSchedule:
    """What every rank of a pipeline does, in order.

    Attributes:
        ranks: the action list of every rank.
    """

    ranks: tuple[ActionList, ...]
    _parted: frozenset[Action] = field(default=frozenset(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self)
        parted = frozenset(action for action in self if action.work is Work.INPUT)
        object.__setattr__(self, "_parted", parted)

    @property
    def stages(self) -> int:
        """The number of stages."""
        return 1 + max((action.stage for action in self), default=-1)

    @property
    def microbatches(self) -> int:
        """The number of microbatches."""
        return 1 + max((action.microbatch for action in self), default=-1)

    def __iter__(self) -> Iterator[Action]:
        for actions in self.ranks:
            yield from actions

    def rank_of(self) -> tuple[int, ...]:
        """The rank of every stage."""
        found = {a.stage: rank for rank, actions in enumerate(self.ranks) for a in actions}
        return tuple(found[stage] for stage in range(self.stages))

    def backward(self, stage: int, microbatch: int) -> Action:
        """The action that gives the gradients of a stage's inputs."""
        parted = Action(stage, Work.INPUT, microbatch)
        return parted if parted in self._parted else Action(stage, Work.BACKWARD, microbatch)

    def to_csv(self) -> str:
        """One row for each rank, as torch's pipelines read it."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([map(str, row) for row in self.ranks])
        return out.getvalue()

    @staticmethod
    def from_csv(text: str) -> PipelineSchedule:
        """The schedule of a text as torch writes it.

        Empty cells, where a rank is idle, are passed over: what a rank waits for follows from the
        order. Of a forward and a backward that torch runs side by side, one follows the other.

        Raises:
            ScheduleError: a cell is no action, or the actions are no step; with row and column.
        """
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
        return PipelineSchedule(
            tuple(tuple(_row(number, row)) for number, row in enumerate(rows, 1))
        )


def _row(number: int, row: Sequence[str]) -> Iterator[Action]:
    for column, cell in enumerate(row, 1):
        text = cell.strip().removesuffix("OVERLAP_F_B")
        for part in text.strip("()").split(";") if text else ():
            try:
                yield Action.parse(part)
            except ValueError as error:
                raise ScheduleError(f"row {number}, column {column}: {error}") from None


def _check(schedule: PipelineSchedule) -> None:
    """Every microbatch passes every stage once, each stage on one rank."""
    if not schedule.ranks or not all(schedule.ranks):
        raise ScheduleError("every rank needs an action")
    found = Counter(schedule)
    twice = next((action for action, count in found.items() if count > 1), None)
    if twice is not None:
        raise ScheduleError(f"`{twice}` is there twice")
    _check_ranks(schedule)
    for stage in range(schedule.stages):
        for microbatch in range(schedule.microbatches):
            _check_one({w: Action(stage, w, microbatch) in found for w in Work}, stage, microbatch)


def _check_ranks(schedule: PipelineSchedule) -> None:
    rank_of: dict[int, int] = {}
    for rank, actions in enumerate(schedule.ranks):
        for action in actions:
            if rank_of.setdefault(action.stage, rank) != rank:
                first = rank_of[action.stage]
                raise ScheduleError(f"stage {action.stage} is on rank {first} and on rank {rank}")


def _check_one(there: dict[Work, bool], stage: int, microbatch: int) -> None:
    of = f"of microbatch {microbatch} in stage {stage}"
    if not there[Work.FORWARD]:
        raise ScheduleError(f"the forward {of} is missing")
    if there[Work.BACKWARD] and (there[Work.INPUT] or there[Work.WEIGHT]):
        raise ScheduleError(f"the backward {of} is there as a whole and in parts")
    if not there[Work.BACKWARD] and there[Work.INPUT] != there[Work.WEIGHT]:
        raise ScheduleError(f"a part of the backward {of} is missing")
    if not there[Work.BACKWARD] and not there[Work.INPUT]:
        raise ScheduleError(f"the backward {of} is missing")
