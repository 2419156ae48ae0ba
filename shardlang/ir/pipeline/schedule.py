"""Schedules of pipelines: the action list of every rank, in torch's text and checked."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from shardlang.ir.pipeline.action import Action, Work

ActionList = tuple[Action, ...]


class ScheduleError(ValueError):
    """A schedule that is no order in which a step can be computed.

    Attributes:
        action: the one that is wrong, or stands beside what is missing; None if there is no one.
        place: row and column of a file, from 1; None where it is of none.
    """

    def __init__(
        self, message: str, action: Action | None = None, place: tuple[int, int] | None = None
    ) -> None:
        super().__init__(message)
        self.action, self.place = action, place


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
        ranks: dict[int, list[Action]] = {}
        places: dict[Action, tuple[int, int]] = {}
        for action, place in csv_actions(text):
            if action is None:
                ranks.setdefault(place[0], [])
                continue
            ranks.setdefault(place[0], []).append(action)
            places[action] = place
        idle = next((row for row, actions in ranks.items() if not actions), None)
        if idle is not None:
            raise _at("the rank has no action", (idle, 1))
        try:
            return PipelineSchedule(tuple(map(tuple, ranks.values())))
        except ScheduleError as error:
            if error.action not in places:
                raise
            raise _at(str(error), places[error.action], error.action) from None


def csv_actions(text: str) -> Iterator[tuple[Action | None, tuple[int, int]]]:
    """The actions of a text as torch writes it, with row and column; None for an empty cell.

    Raises:
        ScheduleError: a cell is no action.
    """
    reader = csv.reader(io.StringIO(text))
    for row in reader:
        for column, cell in enumerate(row, 1):
            place = reader.line_num, column
            content = cell.strip().removesuffix("OVERLAP_F_B").strip("()")
            for part in content.split(";"):
                yield (_action(part, place) if content else None), place


def _action(text: str, place: tuple[int, int]) -> Action:
    try:
        return Action.parse(text)
    except ValueError as error:
        raise _at(str(error), place) from None


def _at(message: str, place: tuple[int, int], action: Action | None = None) -> ScheduleError:
    return ScheduleError(f"row {place[0]}, column {place[1]}: {message}", action, place)


def _check(schedule: PipelineSchedule) -> None:
    """Every microbatch passes every stage once, each stage on one rank."""
    if not schedule.ranks or not all(schedule.ranks):
        raise ScheduleError("every rank needs an action")
    found = Counter(schedule)
    twice = next((action for action, count in found.items() if count > 1), None)
    if twice is not None:
        raise ScheduleError(f"`{twice}` is there twice", twice)
    _check_ranks(schedule)
    for stage in range(schedule.stages):
        for microbatch in range(schedule.microbatches):
            there = {work: Action(stage, work, microbatch) in found for work in Work}
            if message := _fault(there, f"of microbatch {microbatch} in stage {stage}"):
                raise ScheduleError(message, _nearest(schedule, stage, microbatch))


def _check_ranks(schedule: PipelineSchedule) -> None:
    rank_of: dict[int, int] = {}
    for rank, actions in enumerate(schedule.ranks):
        for action in actions:
            if rank_of.setdefault(action.stage, rank) != rank:
                first = rank_of[action.stage]
                message = f"stage {action.stage} is on rank {first} and on rank {rank}"
                raise ScheduleError(message, action)


def _fault(there: dict[Work, bool], of: str) -> str | None:
    """What is wrong with the works of one microbatch in one stage."""
    if not there[Work.FORWARD]:
        return f"the forward {of} is missing"
    if there[Work.BACKWARD] and (there[Work.INPUT] or there[Work.WEIGHT]):
        return f"the backward {of} is there as a whole and in parts"
    if not there[Work.BACKWARD] and there[Work.INPUT] != there[Work.WEIGHT]:
        return f"a part of the backward {of} is missing"
    if not there[Work.BACKWARD] and not there[Work.INPUT]:
        return f"the backward {of} is missing"
    return None


def _nearest(schedule: PipelineSchedule, stage: int, microbatch: int) -> Action | None:
    """An action of a stage, of this microbatch if there is one."""
    of_stage = [action for action in schedule if action.stage == stage]
    own = [action for action in of_stage if action.microbatch == microbatch]
    return next(iter([*own, *of_stage]), None)
