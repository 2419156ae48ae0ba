"""When every action of a pipeline begins and ends, if each begins as soon as it can."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.schedule import PipelineSchedule, ScheduleError

Seconds = Callable[[Action], float]

Way = tuple[int, int]
"""From which rank to which."""


def alike(action: Action) -> float:
    """The duration of an action where forward, inputs and weights take the same time."""
    return 2.0 if action.work is Work.BACKWARD else 1.0


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when, in seconds from the begin of the step."""

    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Shipment:
    """A transfer from one rank to another, which takes time.

    Attributes:
        made: the action at whose end it is sent.
        read: the action that waits for it.
    """

    way: Way
    made: Action
    read: Action
    seconds: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The spans of all actions of a schedule.

    Attributes:
        order: all actions, in one order in which they can be done one after the other.
        shipments: the transfers that take time.
    """

    schedule: PipelineSchedule
    spans: Mapping[Action, Span]
    order: tuple[Action, ...]
    shipments: tuple[Shipment, ...] = ()

    @property
    def makespan(self) -> float:
        """Seconds until all is done."""
        return max(span.end for span in self.spans.values())

    def busy(self, rank: int) -> float:
        """Seconds that a rank computes."""
        return sum(self.spans[a].end - self.spans[a].begin for a in self.schedule.ranks[rank])

    @property
    def bubble(self) -> float:
        """Time in which ranks wait, as a part of the time in which they compute.

        For GPipe and 1F1B of alike stages it is (p - 1) / m (Huang et al., 2019; Narayanan et al.,
        2021), and (p - 1) / (v m) with v stages for each rank.
        """
        busy = sum(map(self.busy, range(len(self.schedule.ranks))))
        return len(self.schedule.ranks) * self.makespan / busy - 1


def timeline(
    schedule: PipelineSchedule, seconds: Seconds, shipments: Iterable[Shipment] = ()
) -> Timeline:
    """When every action begins and ends.

    Args:
        seconds: how long an action takes.
        shipments: the transfers that take time, over each way in order; all others take none.

    Raises:
        ScheduleError: ranks wait for each other in a circle, which is named.
    """
    going = _Going(schedule, seconds, tuple(shipments))
    waiting = set(range(len(schedule.ranks)))
    while waiting:
        moved = [rank for rank in sorted(waiting) if going.go_on(rank)]
        waiting = {rank for rank in waiting if going.action(rank) is not None}
        if waiting and not moved:
            raise ScheduleError(_circle(schedule, going.places))
    spans = going.spans
    order = tuple(sorted(spans, key=lambda action: spans[action].begin))
    return Timeline(schedule, spans, order, going.shipments)


class _Going:
    """The ranks of a pipeline on their way through a step.

    A receive is posted when the action before the one that reads it begins, behind those of all
    that was sent over the same way before; a transfer begins when it is made and its receive is
    posted, behind the one before it.

    Attributes:
        places: of every rank, how many actions it has done.
        spans: of the actions that are done, in an order in which they can be done.
    """

    def __init__(
        self, schedule: PipelineSchedule, seconds: Seconds, shipments: tuple[Shipment, ...]
    ) -> None:
        self.schedule, self.seconds, self.shipments = schedule, seconds, shipments
        self.places, self.spans = [0] * len(schedule.ranks), dict[Action, Span]()
        self._ready = [0.0] * len(schedule.ranks)
        self._read, self._due = (
            defaultdict[Action, list[int]](list),
            defaultdict[Way, deque[int]](deque),
        )
        self._arrived, self._free = dict[int, float](), defaultdict[Way, float](float)
        for number, one in enumerate(shipments):
            self._read[one.read].append(number)
            self._due[one.way].append(number)

    def action(self, rank: int) -> Action | None:
        """The next action of a rank; None behind the last."""
        actions, place = self.schedule.ranks[rank], self.places[rank]
        return actions[place] if place < len(actions) else None

    def go_on(self, rank: int) -> bool:
        """Do all actions of a rank whose turn it is; whether there were any."""
        before = self.places[rank]
        while (action := self.action(rank)) is not None and self._can(action):
            posted = self._posted(rank)
            arrive = [self._arrival(number, posted) for number in self._read[action]]
            ends = [self.spans[one].end for one in needs(action, self.schedule)]
            begin = max((self._ready[rank], *ends, *arrive))
            self._ready[rank] = begin + self.seconds(action)
            self.spans[action] = Span(begin, self._ready[rank])
            self.places[rank] += 1
        return self.places[rank] > before

    def _posted(self, rank: int) -> float:
        """When the receives of the next action of a rank are posted."""
        place = self.places[rank]
        return self.spans[self.schedule.ranks[rank][place - 1]].begin if place else 0.0

    def _can(self, action: Action) -> bool:
        """Whether all that an action reads is made."""
        made = (self.shipments[number].made for number in self._read[action])
        return all(one in self.spans for one in (*needs(action, self.schedule), *made))

    def _arrival(self, number: int, posted: float) -> float:
        """When a transfer is done whose receive is posted at a time, if it was not before."""
        way = self.shipments[number].way
        while number not in self._arrived:
            head = self._due[way].popleft()
            one = self.shipments[head]
            begin = max(self.spans[one.made].end, posted, self._free[way])
            self._free[way] = self._arrived[head] = begin + one.seconds
        return self._arrived[number]


def needs(action: Action, schedule: PipelineSchedule) -> Iterator[Action]:
    """What must be done before an action, of other actions."""
    stage, microbatch = action.stage, action.microbatch
    if action.work is Work.FORWARD:
        if stage:
            yield Action(stage - 1, Work.FORWARD, microbatch)
        return
    if action.work is Work.WEIGHT:
        yield Action(stage, Work.INPUT, microbatch)
        return
    yield Action(stage, Work.FORWARD, microbatch)
    if stage + 1 < schedule.stages:
        yield schedule.backward(stage + 1, microbatch)


def _circle(schedule: PipelineSchedule, places: list[int]) -> str:
    """Which ranks wait for each other."""
    rank_of = schedule.rank_of()
    done = {a for row, place in zip(schedule.ranks, places, strict=True) for a in row[:place]}
    rank = next(r for r, row in enumerate(schedule.ranks) if places[r] < len(row))
    seen: dict[int, str] = {}
    while rank not in seen:
        action = schedule.ranks[rank][places[rank]]
        missing = next(one for one in needs(action, schedule) if one not in done)
        seen[rank] = f"rank {rank} waits for `{missing}` before `{action}`"
        rank = rank_of[missing.stage]
    start = list(seen).index(rank)
    return "the ranks wait for each other: " + ", ".join(list(seen.values())[start:])
