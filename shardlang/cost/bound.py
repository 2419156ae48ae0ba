"""The bytes that any program must send for a change of layout, from the shards alone.

Each device holds one shard before and needs another after. An index that it needs and has not must
come to it, and what one device alone holds must leave it for whoever needs it. Of a sum of p
summands, p - 1 must be sent to where they meet, and the sum once more to every further device that
needs it (Chan, Heimlich, Purkayastha and van de Geijn, 2007, section 3): (n-1)/n of the value for a
reduce-scatter over n devices, twice that for an all-reduce.

The devices of a group, which differ along the axes of the change alone, are taken by themselves:
copies that others hold are not asked for help.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.shards import Frozen, freeze, shared

_Dims = tuple[tuple[DimLayout, DimLayout], ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Elements of the changed dims on one device: held before, needed after, and both."""

    held: int
    needed: int
    both: int


@functools.lru_cache(maxsize=65536)
def least_bytes(src: Layout, dst: Layout, itemsize: int) -> int:
    """Bytes that the busiest device sends at least to get from one layout to another.

    Where the goal is a sum along an axis along which there was none, it is enough that one device
    along that axis gets an index. What these devices hold together must be a shard of the other
    axes, or nothing is said: 0.

    Args:
        itemsize: bytes of one element.
    """
    gained, summed = dst.partial - src.partial, src.partial - dst.partial
    if not all(_joins(dim, gained) for dim in src.dims):
        return 0
    pairs = list(zip(src.without(gained).dims, dst.dims, strict=True))
    moving = tuple((one, other) for one, other in pairs if one != other)
    beside = math.prod(one.max_local_size() for one, other in pairs if one == other) * itemsize
    pieces, along = list(_pieces(moving)), _axes(dim for pair in moving for dim in pair)
    messages = _messages(moving, pieces, _size(summed), _size(summed - along))
    devices = _size(along | summed) * _size(gained)
    leaving = _leaving(moving, pieces, summed) // _size(gained)
    return max(messages * beside // devices, leaving * beside)


def _joins(dim: DimLayout, axes: frozenset[Axis]) -> bool:
    """Whether the shards along some axes are together one shard of the others."""
    return axes.isdisjoint(dim.axes) or (dim.has_minor(axes) and dim.even and dim.held_once)


def _axes(dims: Iterable[DimLayout]) -> frozenset[Axis]:
    return frozenset(axis for dim in dims for axis in dim.axes)


def _size(axes: Iterable[Axis]) -> int:
    return math.prod(axis.size for axis in axes)


def _pieces(moving: _Dims) -> Iterator[_Piece]:
    """The piece at every coordinate along the axes that split the changed dims."""
    axes = sorted(_axes(dim for pair in moving for dim in pair))
    for point in itertools.product(*(range(axis.size) for axis in axes)):
        at = {axis.name: i for axis, i in zip(axes, point, strict=True)}
        yield _Piece(
            math.prod(one.local_size(at) for one, _ in moving),
            math.prod(other.local_size(at) for _, other in moving),
            math.prod(_common(one, other, freeze(at)) for one, other in moving),
        )


def _common(one: DimLayout, other: DimLayout, at: Frozen) -> int:
    """Indices of a dim that a device holds before and after."""
    where = shared(one, at, other, at)
    return where.stop - where.start if isinstance(where, slice) else len(where)


def _messages(moving: _Dims, pieces: Sequence[_Piece], summands: int, copies: int) -> int:
    """Elements that all devices of the group send together, `copies` of them for each piece."""
    needed = copies * sum(piece.needed for piece in pieces)
    if summands == 1:
        return needed - copies * sum(piece.both for piece in pieces)
    return math.prod(one.size for one, _ in moving) * (summands - 2) + needed


def _leaving(moving: _Dims, pieces: Sequence[_Piece], summed: frozenset[Axis]) -> int:
    """Elements that leave some device because no other has them, or their summand.

    Where the goal has copies, another device needs every one of them.
    """
    before = _axes(one for one, _ in moving) | summed
    after = _axes(other for _, other in moving)
    if not after <= before or not all(one.held_once for one, _ in moving):
        return 0
    stays = _size(before - after) == 1
    return max(piece.held - piece.both * stays for piece in pieces)
