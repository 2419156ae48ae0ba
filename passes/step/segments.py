"""Places between which the forward may be computed again by itself, since little crosses them.

What is computed again for one op of the backward is there at once, with all that is made on the
way. So the forward is cut into segments, each of which makes no more than some bytes, where the
fewest bytes cross (Chen et al., 2016); what crosses is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import fx

from shardlang.ir.node import info
from shardlang.passes.step.prices import Prices


class Crossing:
    """How many bytes are made, and cross, behind each call of a forward.

    Attributes:
        made: bytes that have been made up to there.
        across: bytes of values that are made up to there and read later in the forward.
    """

    def __init__(self, forward: Sequence[fx.Node], prices: Prices) -> None:
        self.forward, self.prices = forward, prices
        self.last = self._last_reads()
        self.made: list[int] = []
        self.across: list[int] = []
        sizes = prices.replay.storages
        ends: dict[int, int] = {}
        for storage, place in self.last.items():
            ends[place] = ends.get(place, 0) + sizes[storage].bytes
        live = made = 0
        seen: set[int] = set()
        for place, node in enumerate(forward):
            new = prices.storages(node) - prices.free - seen
            seen |= new
            size = sum(sizes[n].bytes for n in new)
            live, made = live + size - ends.get(place, 0), made + size
            self.made.append(made)
            self.across.append(live)

    def _last_reads(self) -> dict[int, int]:
        """The last call of the forward that reads each storage, or the one that makes it."""
        last: dict[int, int] = {}
        place = {node: i for i, node in enumerate(self.forward)}
        for node in self.forward:
            reads = [place[u] for u in node.users if not info(u).backward and u in place]
            for storage in self.prices.storages(node) - self.prices.free:
                last[storage] = max([last.get(storage, 0), place[node], *reads])
        return last

    def barriers(self, most_bytes: float) -> list[int]:
        """Places behind which a segment ends, none of which makes more than some bytes."""
        found: list[int] = []
        start = base = 0
        while start < len(self.forward):
            end = start
            while end < len(self.forward) and self.made[end] - base <= most_bytes:
                end += 1
            if end >= len(self.forward):
                break
            half = (start + max(end, start + 1)) // 2
            window = range(max(half, start), max(end, start + 1))
            best = min(reversed(window), key=lambda i: self.across[i])
            found.append(best)
            start, base = best + 1, self.made[best]
        return found

    def ways(self) -> list[list[int]]:
        """The places of the ways to cut, from no segments to those of which `best` is one."""
        total = self.made[-1] if self.made else 0
        tried = [*dict.fromkeys(tuple(self.barriers(total / 2**n)) for n in range(12))]
        best = min(tried, key=self._at_once)
        return [list(places) for places in tried[: tried.index(best) + 1]]

    def best(self) -> list[int]:
        """The places of those segments with which the fewest bytes are there at once.

        These are all that crosses, and what the largest segment makes.
        """
        return self.ways()[-1]

    def _at_once(self, places: Sequence[int]) -> int:
        ends = [0, *(self.made[p] for p in places), self.made[-1] if self.made else 0]
        largest = max(b - a for a, b in itertools.pairwise(ends))
        return largest + sum(self.across[p] for p in places)

    def crossing(self, places: Sequence[int]) -> set[fx.Node]:
        """The values that cross one of some places."""
        wanted, found = sorted(places), set[fx.Node]()
        for place, node in enumerate(self.forward):
            after = next((p for p in wanted if p >= place), None)
            storages = self.prices.storages(node) - self.prices.free
            made = not self.prices.is_view(node)
            if made and after is not None and any(self.last[n] > after for n in storages):
                found.add(node)
        return found
