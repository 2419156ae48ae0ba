"""When every action of a pipeline begins and ends, if each begins as soon as it can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.schedule import PipelineSchedule, ScheduleError

Seconds = Callable[[Action], float]


def alike(action: Action) -> float:
    """The duration of an action where forward, inputs and weights take the same time."""
    return 2.0 if action.work is Work.BACKWARD else 1.0


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when, in seconds from the begin of the step."""

    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The spans of all actions of a schedule.

    Attributes:
        order: all actions, in one order in which they can be done one after the other.
    """

    schedule: PipelineSchedule
    spans: Mapping[Action, Span]
    order: tuple[Action, ...]

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


def timeline(schedule: PipelineSchedule, seconds: Seconds, transfer: float = 0.0) -> Timeline:
    """When every action begins and ends.

    Args:
        seconds: how long an action takes.
        transfer: seconds from one rank to another.

    Raises:
        ScheduleError: ranks wait for each other in a circle, which is named.
    """
    rank_of, ready = schedule.rank_of(), [0.0] * len(schedule.ranks)
    places, spans, order = [0] * len(schedule.ranks), dict[Action, Span](), list[Action]()
    waiting = set(range(len(schedule.ranks)))
    while waiting:
        moved = False
        for rank in sorted(waiting):
            while places[rank] < len(schedule.ranks[rank]):
                action = schedule.ranks[rank][places[rank]]
                before = list(needs(action, schedule))
                if not all(one in spans for one in before):
                    break
                arrive = (
                    spans[one].end + (transfer if rank_of[one.stage] != rank else 0.0)
                    for one in before
                )
                begin = max((ready[rank], *arrive))
                ready[rank] = begin + seconds(action)
                spans[action] = Span(begin, ready[rank])
                order.append(action)
                places[rank] += 1
                moved = True
            if places[rank] == len(schedule.ranks[rank]):
                waiting.discard(rank)
        if not moved:
            raise ScheduleError(_circle(schedule, places))
    return Timeline(schedule, spans, tuple(sorted(order, key=lambda a: spans[a].begin)))


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
