"""Tensors as `DTensor`s, for `torch.distributed.checkpoint` and other tools that take them.

A DTensor splits a dim by its mesh dims from left to right; the mesh is put in the order of the
layout's axes, so products in any order can be said. What it cannot say are packed blocks and uneven
splits other than `torch.chunk`'s; such a tensor crosses the boundary whole.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from shardlang.ir import Coord, DimLayout, Layout
from shardlang.ir.pieces import piece_of
from shardlang.runtime.groups import Groups
from shardlang.runtime.whole import whole


def expressible(layout: Layout) -> bool:
    """Whether a DTensor can say how the tensor lies."""
    return all(dim.plain and _like_chunks(dim) for dim in layout.dims if dim.axes)


def _like_chunks(dim: DimLayout) -> bool:
    """Whether every device's piece of a plain dim is the one that `torch.chunk` gives."""
    names = [axis.name for axis in dim.axes]
    points = itertools.product(*(range(axis.size) for axis in dim.axes))
    return all(_same_piece(dim, dict(zip(names, point, strict=True))) for point in points)


def _same_piece(dim: DimLayout, coord: Coord) -> bool:
    start, length = 0, dim.size
    for axis in dim.axes:
        step = -(-length // axis.size)
        offset = min(step * coord[axis.name], length)
        start, length = start + offset, min(step, length - offset)
    return length == dim.local_size(coord) and (length == 0 or start == dim.start(coord))


def to_dtensor(piece: Tensor, layout: Layout, groups: Groups) -> DTensor:
    """A DTensor, around this device's piece where a DTensor can say it. Collective."""
    if not expressible(layout):
        return to_dtensor(whole(piece, layout, groups), Layout.whole(layout.shape), groups)
    order = _axis_order(layout, groups)
    placements = [_placement(layout, groups, name) for name in order]
    like = torch.empty(layout.shape, device="meta")
    made: DTensor = DTensor.from_local(
        piece.detach(),
        groups.device_mesh(order),
        placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return made


def from_dtensor(given: DTensor, layout: Layout, groups: Groups) -> Tensor:
    """This device's piece of a DTensor that `to_dtensor` made for the layout."""
    local: Tensor = given.to_local()
    return local if expressible(layout) else piece_of(local, layout, groups.coord)


def _axis_order(layout: Layout, groups: Groups) -> tuple[str, ...]:
    """All axes, those of the layout first and each dim's from major to minor."""
    split = [axis.name for axis in layout.sharded]
    return tuple(split + [axis.name for axis in groups.mesh.axes if axis.name not in split])


def _placement(layout: Layout, groups: Groups, name: str) -> Placement:
    dim = layout.dim_of(groups.mesh[name])
    return Replicate() if dim is None else Shard(dim)
