"""The parts of a tensor along one dim, one for every member of a group.

`split` cuts a tensor into the parts, `join` puts it together from them. Parts that are contiguous
and in order cost one call and, split, no copy; parts in many stretches (packed or strided blocks)
are reordered by an index.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.mesh import Coord
from shardlang.ir.moved import moved, places
from shardlang.ir.shards import freeze, place

Run = tuple[int, int, int]
"""A stretch of a part: the member, its start within the part, its length."""

MAX_RUNS = 32
"""With more stretches than this, one index is faster than a copy of each."""


class Parts:
    """Where the parts of `dim` lie: for every member the positions, in the order of its part."""

    def __init__(
        self, dim: int, positions: Sequence[Sequence[int]], size: int, device: torch.device
    ) -> None:
        self.dim = dim
        self.sizes = [len(where) for where in positions]
        runs = sorted(run for m, where in enumerate(positions) for run in _stretches(m, where))
        self.runs: list[Run] = [(member, begin, length) for _, member, begin, length in runs]
        self.in_order = sum(self.sizes) == size and runs == _one_by_one(self.sizes)
        self.even = len(set(self.sizes)) == 1
        if not self.in_order:
            self._gathered, self._scattered = _orders(positions, device)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """The part of every member; views where the parts are contiguous."""
        if not self.in_order:
            x = x.index_select(self.dim, self._scattered)
        parts: Sequence[Tensor] = x.split_with_sizes(self.sizes, self.dim)
        return parts

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The tensor that the members' parts make."""
        if self.in_order:
            return torch.cat(list(parts), self.dim)
        if len(self.runs) > MAX_RUNS:
            return torch.cat(list(parts), self.dim).index_select(self.dim, self._gathered)
        return torch.cat([parts[m].narrow(self.dim, a, n) for m, a, n in self.runs], self.dim)


def _stretches(member: int, where: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Maximal stretches of consecutive positions: position, member, start in the part, length."""
    if isinstance(where, range):
        return [(where.start, member, 0, len(where))] if where else []
    found: list[tuple[int, int, int, int]] = []
    for begin, position in enumerate(where):
        if found and position == found[-1][0] + found[-1][3]:
            start, _, first, length = found[-1]
            found[-1] = (start, member, first, length + 1)
        else:
            found.append((position, member, begin, 1))
    return found


def _one_by_one(sizes: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """The stretches of parts that lie one after the other."""
    starts = itertools.accumulate(sizes, initial=0)
    return [(start, m, 0, n) for m, (start, n) in enumerate(zip(starts, sizes, strict=False)) if n]


def _orders(positions: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices that order joined parts by position, and that order positions by part."""
    flat = torch.tensor([p for where in positions for p in where], dtype=torch.long)
    return torch.argsort(flat).to(device), flat.to(device)


def parts_of(
    dim: int,
    narrow: DimLayout,
    wide: DimLayout,
    coords: Sequence[Coord],
    device: torch.device,
) -> Parts:
    """The members' shards of `narrow` within the shard of `wide` that they all share."""
    size = wide.local_size(coords[0])
    found = [place(narrow, wide, freeze(coord)) for coord in coords]
    return Parts(dim, [positions_of(where, size) for where in found], size, device)


def positions_of(where: slice | tuple[int, ...], size: int) -> Sequence[int]:
    """The positions that a place names in a dim of `size`."""
    return range(*where.indices(size)) if isinstance(where, slice) else where


def moved_parts(
    dim: int,
    src: DimLayout,
    dst: DimLayout,
    coords: Sequence[Coord],
    member: int,
    device: torch.device,
) -> tuple[Parts, Parts]:
    """What a member of a group sends of its shard in `src`, and gets of its shard in `dst`."""
    frozen = tuple(freeze(coord) for coord in coords)
    by_pair = moved(src, dst, frozen)
    before, after = (places(layout, frozen[member]) for layout in (src, dst))
    sent = [[before[i] for i in by_pair[member][m]] for m in range(len(coords))]
    received = [[after[i] for i in by_pair[m][member]] for m in range(len(coords))]
    return Parts(dim, sent, len(before), device), Parts(dim, received, len(after), device)
