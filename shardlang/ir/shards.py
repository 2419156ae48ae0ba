"""Cutting shards of one dim: where the indices of one layout lie in the shard of another.

All functions work on the local tensors of one device. A place is a slice where the shard is
contiguous, an index list where it is not.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Coord

Frozen = tuple[tuple[str, int], ...]


def freeze(coord: Coord) -> Frozen:
    """A coordinate as a hashable value."""
    return tuple(sorted(coord.items()))


@functools.lru_cache(maxsize=65536)
def _place(narrow: DimLayout, wide: DimLayout, coord: Frozen) -> tuple[int, int] | tuple[int, ...]:
    """Where the indices of `narrow` lie in the local shard of `wide`."""
    at = dict(coord)
    where = {index: place for place, index in enumerate(wide.indices(at))}
    return tuple(where[index] for index in narrow.indices(at))


@functools.lru_cache(maxsize=65536)
def place(narrow: DimLayout, wide: DimLayout, coord: Frozen) -> slice | tuple[int, ...]:
    """Where the local indices of `narrow` lie in the local shard of `wide`, at one coordinate."""
    if narrow.plain and wide.plain:
        start, base = narrow.start(dict(coord)), wide.start(dict(coord))
        return slice(start - base, start - base + narrow.local_size(dict(coord)))
    return contiguous(_place(narrow, wide, coord))


@functools.lru_cache(maxsize=65536)
def shared(
    mine: DimLayout, at: Frozen, theirs: DimLayout, there: Frozen
) -> slice | tuple[int, ...]:
    """Where, in the shard of `mine` at one coordinate, that of `theirs` at another lies.

    Returns:
        The positions of the indices that both have, ascending by index.
    """
    if mine.plain and theirs.plain:
        start, length = mine.blocks[0][0].span(dict(at))
        first, count = theirs.blocks[0][0].span(dict(there))
        begin, end = max(start, first), min(start + length, first + count)
        return slice(begin - start, end - start) if begin < end else slice(0, 0)
    wanted = set(theirs.indices(dict(there)))
    places = tuple(p for p, index in enumerate(mine.indices(dict(at))) if index in wanted)
    return contiguous(places)


def contiguous(places: tuple[int, ...]) -> slice | tuple[int, ...]:
    """Ascending positions, as a slice where they are in a row."""
    if not places:
        return slice(0, 0)
    if places == tuple(range(places[0], places[0] + len(places))):
        return slice(places[0], places[0] + len(places))
    return places


def take(x: Tensor, dim: int, where: slice | tuple[int, ...]) -> Tensor:
    """Part of `x` along `dim`: a view where the part is contiguous."""
    if isinstance(where, slice):
        return x.narrow(dim, where.start, where.stop - where.start)
    return x.index_select(dim, torch.tensor(where, device=x.device))


def cut(x: Tensor, dim: int, narrow: DimLayout, wide: DimLayout, coord: Coord) -> Tensor:
    """This device's narrower shard of its own shard."""
    return take(x, dim, place(narrow, wide, freeze(coord)))


def peers(coord: Coord, axes: Sequence[Axis]) -> list[dict[str, int]]:
    """Coordinates of the group of `coord` along `axes`, in major-to-minor order."""
    found = [dict(coord)]
    for axis in axes:
        found = [{**at, axis.name: i} for at in found for i in range(axis.size)]
    return found


def shard_of(full: Tensor, layout: Layout, coord: Coord) -> Tensor:
    """The part of a global tensor that the device at `coord` holds."""
    for dim, dim_layout in enumerate(layout.dims):
        if dim_layout.axes:
            full = cut(full, dim, dim_layout, DimLayout.whole(dim_layout.size), coord)
    return full
