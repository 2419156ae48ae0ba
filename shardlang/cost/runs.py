"""The best way to cut a chain into runs, one for each stage of a pipeline: exact, by tables.

The best run of the first `k` items into `s` runs is found from those into `s - 1` (Bellman, 1957).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate

Cost = Callable[[int, int], float]
"""Of a run: its first item, and the one behind its last."""


def best_runs(
    work: Sequence[int],
    memory: Sequence[int],
    crossing: Sequence[int],
    runs: int,
    never: Collection[int] = (),
) -> tuple[int, ...] | None:
    """Where each run begins; None where there are too few places to cut.

    The most work of a run is least; of all ways with so much, those with the least memory in the
    fullest run; and of these, the one with the fewest bytes across its cuts.

    Args:
        work, memory: of every item.
        crossing: the bytes that cross a cut before an item.
        never: items before which no cut is.
    """
    most_work, most_memory = math.inf, math.inf
    works, memories = _sums(work), _sums(memory)

    def allowed(cost: Cost) -> Cost:
        def limited(begin: int, end: int) -> float:
            fits = works(begin, end) <= most_work and memories(begin, end) <= most_memory
            return cost(begin, end) if fits and begin not in never else math.inf

        return limited

    count = len(work)
    most_work, _ = _least(count, runs, allowed(works), max)
    if most_work == math.inf:
        return None
    most_memory, _ = _least(count, runs, allowed(memories), max)
    across = allowed(lambda begin, _: crossing[begin] if begin else 0)
    return _least(count, runs, across, lambda a, b: a + b)[1]


def _sums(values: Sequence[int]) -> Cost:
    until = list(accumulate(values, initial=0))
    return lambda begin, end: until[end] - until[begin]


def _least(
    count: int, runs: int, cost: Cost, join: Callable[[float, float], float]
) -> tuple[float, tuple[int, ...]]:
    """The least joined cost of so many runs, and where each begins."""
    best: list[tuple[float, tuple[int, ...]]] = [(math.inf, ())] * (count + 1)
    best[0] = (0.0, ())
    for _ in range(runs):
        made = [(math.inf, tuple[int, ...]())]
        for end in range(1, count + 1):
            ways = (
                (join(best[begin][0], cost(begin, end)), (*best[begin][1], begin))
                for begin in range(end)
                if best[begin][0] < math.inf
            )
            made.append(min(ways, default=(math.inf, ())))
        best = made
    return best[count]
