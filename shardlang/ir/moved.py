"""Which indices of one dim change their holder between two layouts, and from whom to whom."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.mesh import Axis
from shardlang.ir.shards import Frozen


@functools.lru_cache(maxsize=1024)
def moved(src: DimLayout, dst: DimLayout, coords: tuple[Frozen, ...]) -> list[list[list[int]]]:
    """By sender and receiver, the indices that pass, in ascending order.

    Each index comes from one member alone: the receiver itself, or the first that holds it.
    """
    holds = [places(src, coord) for coord in coords]
    first = {i: m for m in reversed(range(len(coords))) for i in holds[m]}
    found: list[list[list[int]]] = [[[] for _ in coords] for _ in coords]
    for receiver, coord in enumerate(coords):
        for i in places(dst, coord):
            found[receiver if i in holds[receiver] else first[i]][receiver].append(i)
    return found


@functools.lru_cache(maxsize=4096)
def places(dim: DimLayout, coord: Frozen) -> dict[int, int]:
    """Global index to its place in the shard at one coordinate, in ascending order."""
    return {index: place for place, index in enumerate(dim.indices(dict(coord)))}


@functools.lru_cache(maxsize=1024)
def moved_axes(src: DimLayout, dst: DimLayout) -> tuple[Axis, ...]:
    """The axes along which some index changes its holder; data moves between their devices alone.

    The order of the axes does not tell: between the same axes, other blocks are held elsewhere.
    """
    axes = tuple(dict.fromkeys((*src.axes, *dst.axes)))
    before, after = _holders(src, axes), _holders(dst, axes)
    return tuple(axis for axis in axes if before[axis] != after[axis])


def _holders(dim: DimLayout, axes: Sequence[Axis]) -> dict[Axis, list[int]]:
    """For every axis and index, the coordinates along the axis that hold it, as bits."""
    held = {axis: [0] * dim.size for axis in axes}
    for point in itertools.product(*(range(axis.size) for axis in axes)):
        at = {axis.name: i for axis, i in zip(axes, point, strict=True)}
        for index in dim.indices(at):
            for axis in axes:
                held[axis][index] |= 1 << at[axis.name]
    return held
