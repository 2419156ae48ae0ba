"""What an exchange sends: every index goes to the device that has it after, if it is not there."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.moved import moved, moved_axes
from shardlang.ir.shards import Frozen, freeze, shared

_Pair = tuple[DimLayout, DimLayout]


@functools.lru_cache(maxsize=65536)
def exchanged(src: Layout, dst: Layout) -> int:
    """Elements that the busiest device sends to get from one split layout to another.

    A device sends what it holds and does not keep. Of an index with several holders along the
    axes, the first sends it to all that have it not.
    """
    pairs = tuple(zip(src.dims, dst.dims, strict=True))
    moving = [pair for pair in pairs if pair[0] != pair[1]]
    beside = math.prod(one.max_local_size() for one, other in pairs if one == other)
    held = math.prod(one.max_local_size() for one, _ in moving)
    if len(moving) == 1 and not all(map(_held_once, moving[0])):
        return beside * _by_the_first(*moving[0])
    axes = tuple(dict.fromkeys(axis for pair in moving for dim in pair for axis in dim.axes))
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
    return held - math.prod(_kept(one, other, at) for one, other in moving)


def _by_the_first(one: DimLayout, other: DimLayout) -> int:
    """The indices that the busiest device sends, all by the first device that holds them."""
    coords = tuple(_coords(moved_axes(one, other)))
    by_pair = moved(one, other, coords)
    return max(
        sum(len(found) for receiver, found in enumerate(row) if receiver != sender)
        for sender, row in enumerate(by_pair)
    )


def _kept(one: DimLayout, other: DimLayout, at: Frozen) -> int:
    """Indices that a device holds in both layouts of a dim."""
    where = shared(one, at, other, at)
    return where.stop - where.start if isinstance(where, slice) else len(where)


def _held_once(dim: DimLayout) -> bool:
    """Whether every index has one holder along the axes of the dim."""
    own = set(dim.axes)
    return all({axis for f in block for axis in f.axes} == own for block in dim.blocks)
