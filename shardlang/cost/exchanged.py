"""What devices send each other point to point: exactly the indices that another one lacks.

In an exchange every index goes to the device that has it after; in a halo to those that read it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.edges import all_coords, readings
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.moved import moved, moved_axes
from shardlang.ir.reads import Reads
from shardlang.ir.shards import Frozen, freeze, shared

_Pair = tuple[DimLayout, DimLayout]


@functools.lru_cache(maxsize=65536)
def exchanged(src: Layout, dst: Layout) -> int:
    """Elements that the busiest device sends to get from one split layout to another.

    A device sends what it holds and does not keep. Of an index with several holders along the
    axes, the first sends it to all that have it not; in an exchange of several dims, every holder.
    """
    pairs = tuple(zip(src.dims, dst.dims, strict=True))
    moving = [pair for pair in pairs if pair[0] != pair[1]]
    beside = math.prod(one.max_local_size() for one, other in pairs if one == other)
    held = math.prod(one.max_local_size() for one, _ in moving)
    axes = tuple(dict.fromkeys(axis for pair in moving for dim in pair for axis in dim.axes))
    if not all(dim.held_once for pair in moving for dim in pair):
        several = len(moving) > 1
        return beside * (_by_every(moving, axes) if several else _by_the_first(*moving[0]))
    most = 0
    for at in _coords(axes):
        most = max(most, _sent(moving, at))
        if most == held:
            break
    return beside * most


def _coords(axes: tuple[Axis, ...]) -> Iterator[Frozen]:
    """All coordinates along some axes."""
    names = [axis.name for axis in axes]
    for point in itertools.product(*(range(axis.size) for axis in axes)):
        yield freeze(dict(zip(names, point, strict=True)))


def _sent(moving: list[_Pair], at: Frozen) -> int:
    """Elements that the device at a coordinate holds before, and not after."""
    coord = dict(at)
    held = math.prod(one.local_size(coord) for one, _ in moving)
    return held - _common(moving, at, at)


def _by_the_first(one: DimLayout, other: DimLayout) -> int:
    """The indices that the busiest device sends, all by the first device that holds them.

    The first of its group, which differs along the axes that move data alone.
    """
    moving = moved_axes(one, other)
    rest = tuple(dict.fromkeys(axis for axis in (*one.axes, *other.axes) if axis not in moving))
    return max(_in_group(one, other, moving, at) for at in _coords(rest))


def _in_group(one: DimLayout, other: DimLayout, moving: tuple[Axis, ...], at: Frozen) -> int:
    """The indices that the busiest device of the group at a coordinate sends."""
    coords = tuple(freeze({**dict(at), **dict(point)}) for point in _coords(moving))
    by_pair = moved(one, other, coords)
    return max(
        sum(len(found) for receiver, found in enumerate(row) if receiver != sender)
        for sender, row in enumerate(by_pair)
    )


def _by_every(moving: list[_Pair], axes: tuple[Axis, ...]) -> int:
    """Elements that the busiest device sends where each holder sends what it has to all."""
    coords = list(_coords(axes))
    return max(sum(_common(moving, at, there) for there in coords if there != at) for at in coords)


def _common(moving: list[_Pair], at: Frozen, there: Frozen) -> int:
    """Elements that one device holds before, and another after."""
    return math.prod(_shared(one, at, other, there) for one, other in moving)


def _shared(one: DimLayout, at: Frozen, other: DimLayout, there: Frozen) -> int:
    """Indices of a dim that one device holds before, and another after."""
    where = shared(one, at, other, there)
    return where.stop - where.start if isinstance(where, slice) else len(where)


@functools.lru_cache(maxsize=4096)
def edge_elements(src: Layout, dst: Layout, place: int, reads: Reads) -> int:
    """Elements that the busiest device sends in a halo, or with reads that go back in a fold.

    Args:
        place: the dim that reads.
    """
    read, made = (dst, src) if reads.back else (src, dst)
    ends = read.dims[place], made.dims[place]
    each = [one.counts for one in readings(*ends, reads.there, all_coords(ends[0]))]
    sent = map(sum, each if reads.back else zip(*each, strict=True))
    beside = (dim.max_local_size() for i, dim in enumerate(src.dims) if i != place)
    return max(sent) * math.prod(beside)
