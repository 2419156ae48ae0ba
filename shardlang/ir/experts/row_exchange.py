"""What a route moves: which rows of a device go where, and how many come from where.

A device gets its rows in the order of the devices that send them, and from each in the order in
which they lie there.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.ir.experts.route import RouteAt
from shardlang.ir.shards import freeze, peers, place, take


@dataclass(frozen=True, slots=True)
class RowExchange:
    """The rows that one device sends and gets in one dispatch; a collect swaps the two.

    Attributes:
        order: the device's own rows, ordered by the member that they go to.
        sent: how many rows go to each member.
        received: how many come from each.
    """

    order: Tensor
    sent: list[int]
    received: list[int]


class Router:
    """One device's end of a route: what does not depend on the groups is worked out once."""

    def __init__(self, end: RouteAt, device: torch.device) -> None:
        route, coord = end.route, dict(end.coord)
        self.members = peers(coord, route.axes)
        self.index = self.members.index(coord)
        every = torch.arange(route.known.local_size(coord))
        shards = [take(every, 0, place(route.rows, route.known, freeze(m))) for m in self.members]
        by_member, self._sizes = torch.cat(shards), [len(shard) for shard in shards]
        self._in_order = torch.equal(by_member, every)
        self._by_member = by_member.to(device)
        senders = torch.arange(len(shards)).repeat_interleave(torch.tensor(self._sizes))
        self._senders = senders.to(device) * len(shards)
        owners = torch.empty(route.groups.size, dtype=torch.int64)
        for member, at in enumerate(self.members):
            owners[route.groups.indices(at)] = member
        self._owners = owners.to(device)
        self._last: tuple[weakref.ref[Tensor], RowExchange] | None = None

    def exchange(self, groups: Tensor) -> RowExchange:
        """What moves, by the known groups; the latest is kept."""
        if self._last is None or self._last[0]() is not groups:
            self._last = weakref.ref(groups), self._exchange(groups)
        return self._last[1]

    def _exchange(self, groups: Tensor) -> RowExchange:
        goals, n = self._goals(self._ordered(groups)), len(self.members)
        counts = torch.bincount(self._senders + goals, minlength=n**2).view(n, n).tolist()
        order = goals.split_with_sizes(self._sizes)[self.index].argsort(stable=True)
        return RowExchange(order, counts[self.index], [row[self.index] for row in counts])

    def received_groups(self, groups: Tensor) -> Tensor:
        """The groups of the rows that a dispatch brings here, in their order."""
        ordered = self._ordered(groups)
        return ordered[self._goals(ordered) == self.index]

    def _ordered(self, groups: Tensor) -> Tensor:
        """The groups of the members' rows, member by member."""
        return groups if self._in_order else groups[self._by_member]

    def _goals(self, groups: Tensor) -> Tensor:
        """The member that has each group; negative ones count from the end.

        Rows without a group go to the first or the last.
        """
        count = len(self._owners)
        return self._owners[torch.where(groups < 0, groups + count, groups).clamp(0, count - 1)]


@functools.lru_cache(maxsize=4096)
def router_at(end: RouteAt, device: torch.device) -> Router:
    """One device's end of a route."""
    return Router(end, device)
