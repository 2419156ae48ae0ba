"""Schedules that fill what is idle with gradients of weights (Qi et al., 2023 and 2024).

A rank takes at once what others wait for: the gradient of its inputs if it can be made, else a
forward if that does not hold too much, else a weight. How many microbatches may be ahead in the
first half of a V decides how well the halves meet; all are tried, and the shortest schedule taken.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from shardlang.cost.timeline import Timeline, alike, timeline
from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.schedule import PipelineSchedule

Seconds = Callable[[Action], float]


def zb_h1(ranks: int, microbatches: int, seconds: Seconds = alike) -> PipelineSchedule:
    """One stage for each rank; holds as many microbatches as the first stage of 1F1B does."""
    stages = [(rank,) for rank in range(ranks)]
    return _greedy(stages, microbatches, seconds, ranks, ranks)


def zbv(ranks: int, microbatches: int, seconds: Seconds = alike) -> PipelineSchedule:
    """Two stages for each rank, in a V; holds as much as the first stage of 1F1B does."""
    return _shortest(ranks, microbatches, seconds, 2 * ranks)


def v_half(ranks: int, microbatches: int, seconds: Seconds = alike) -> PipelineSchedule:
    """Two stages for each rank, in a V; holds half of what the first stage of 1F1B does.

    With two ranks the least in which a V can move is more than that: one microbatch and a half.
    """
    return _shortest(ranks, microbatches, seconds, max(ranks, 2))


def _shortest(ranks: int, microbatches: int, seconds: Seconds, most: int) -> PipelineSchedule:
    """The shortest of the schedules with so many stages' activations at most."""
    stages = [(rank, 2 * ranks - 1 - rank) for rank in range(ranks)]
    best, shortest = None, math.inf
    for ahead in range(max(2, most) - 1, 0, -1):
        made = _greedy(stages, microbatches, seconds, most, ahead)
        spans = timeline(made, seconds)
        if spans.makespan < shortest:
            best, shortest = made, spans.makespan
        if shortest <= _least(spans, seconds):
            break
    assert best is not None
    return best


def _least(spans: Timeline, seconds: Seconds) -> float:
    """No schedule is shorter: a rank computes all that is its own once the first value is there."""
    before = [seconds(Action(rank, Work.FORWARD, 0)) for rank in range(len(spans.schedule.ranks))]
    return max(sum(before[:rank]) + spans.busy(rank) for rank in range(len(before)))


@dataclass(slots=True)
class _Rank:
    """A rank while its list is written.

    Attributes:
        stages: its stages, the first one first.
        held: the microbatches of every stage whose activations lie there.
    """

    stages: tuple[int, ...]
    actions: list[Action] = field(default_factory=list)
    forwards: dict[int, int] = field(default_factory=dict)
    backwards: dict[int, int] = field(default_factory=dict)
    weights: deque[Action] = field(default_factory=deque)
    held: dict[int, int] = field(default_factory=dict)

    def take(self, action: Action) -> None:
        """Put an action behind the others."""
        self.actions.append(action)
        stage = action.stage
        if action.work is Work.FORWARD:
            self.forwards[stage] = action.microbatch + 1
            self.held[stage] = self.held.get(stage, 0) + 1
        elif action.work is Work.INPUT:
            self.backwards[stage] = action.microbatch + 1
            self.weights.append(Action(stage, Work.WEIGHT, action.microbatch))
        else:
            self.weights.popleft()
            self.held[stage] -= 1


def _greedy(
    stages: Sequence[tuple[int, ...]],
    microbatches: int,
    seconds: Seconds,
    most: int,
    ahead: int,
) -> PipelineSchedule:
    """Every rank takes what helps others most.

    Args:
        most: how many stages' activations of a microbatch a rank may hold.
        ahead: how many of these may be of its first stage.
    """
    writing = _Greedy([_Rank(one) for one in stages], microbatches, seconds, most, ahead)
    writing.run()
    return PipelineSchedule(tuple(tuple(rank.actions) for rank in writing.ranks))


@dataclass(slots=True)
class _Greedy:
    ranks: list[_Rank]
    microbatches: int
    seconds: Seconds
    most: int
    ahead: int
    ends: dict[Action, float] = field(default_factory=dict)

    def run(self) -> None:
        """Let every rank that is free go on whenever something is done."""
        times = [0.0]
        while times:
            now = heapq.heappop(times)
            for rank in self.ranks:
                if rank.actions and self.ends[rank.actions[-1]] > now:
                    continue
                action = next(self._choices(rank, now), None)
                if action is not None:
                    self.ends[action] = now + self.seconds(action)
                    rank.take(action)
                    heapq.heappush(times, self.ends[action])

    def _choices(self, rank: _Rank, now: float) -> Iterator[Action]:
        """What a rank can do now, the best first."""
        for make in (self._inputs, self._forwards):
            found = [a for a in make(rank) if self._is_ready(a, now)]
            yield from sorted(found, key=lambda a: (a.microbatch, -a.stage))
        yield from list(rank.weights)[:1]

    def _inputs(self, rank: _Rank) -> Iterator[Action]:
        for stage in rank.stages:
            number = rank.backwards.get(stage, 0)
            if number < rank.forwards.get(stage, 0):
                yield Action(stage, Work.INPUT, number)

    def _forwards(self, rank: _Rank) -> Iterator[Action]:
        """The forwards for which there is room; the first stage leaves some to the last."""
        if sum(rank.held.values()) >= self.most:
            return
        for stage in rank.stages:
            number = rank.forwards.get(stage, 0)
            first = stage == rank.stages[0]
            if number < self.microbatches and not (first and rank.held.get(stage, 0) >= self.ahead):
                yield Action(stage, Work.FORWARD, number)

    def _is_ready(self, action: Action, now: float) -> bool:
        stage, microbatch = action.stage, action.microbatch
        if action.work is Work.FORWARD:
            needed = Action(stage - 1, Work.FORWARD, microbatch) if stage else None
        elif stage + 1 < sum(len(rank.stages) for rank in self.ranks):
            needed = Action(stage + 1, Work.INPUT, microbatch)
        else:
            needed = Action(stage, Work.FORWARD, microbatch)
        return needed is None or self.ends.get(needed, now + 1) <= now
