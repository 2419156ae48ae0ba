"""Whole tensors from the shards of all devices, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Coord
from shardlang.ir.shards import freeze, place
from shardlang.runtime.groups import Group, Groups
from shardlang.runtime.parts import positions_of
from shardlang.runtime.transport import Wire
from shardlang.runtime.watch import named

_ON_FIRST = "gather of a whole tensor on rank 0"


def whole(shard: Tensor, layout: Layout, groups: Groups) -> Tensor:
    """The whole tensor on every device. Collective.

    Along axes that do not split the tensor every device holds the same, and nothing is sent.
    """
    shard, group = held_shard(shard), groups.of(layout.sharded)
    if group.size == 1:
        return shard
    cell = _cell(layout, group)
    rows = named("gather of a whole tensor", Wire(group).all_gather, _padded(shard, cell))
    return _joined(rows.view(group.size, *cell), layout, group)


def whole_on_first(shard: Tensor, layout: Layout, groups: Groups) -> Tensor | None:
    """The whole tensor on rank 0, None elsewhere. Collective; sends each shard once."""
    shard, group = held_shard(shard), groups.of(layout.sharded)
    holds_first = all(
        groups.coord[axis.name] == 0 for axis in groups.mesh.axes if axis not in group.axes
    )
    if not holds_first:
        return None
    if group.size == 1:
        return shard
    cell = _cell(layout, group)
    mine = _padded(shard, cell).view(-1).view(torch.uint8)
    rows = [torch.empty_like(mine) for _ in range(group.size)] if groups.rank == 0 else None
    named(_ON_FIRST, dist.gather, mine, rows, 0, group.process_group)
    if rows is None:
        return None
    return _joined(torch.stack(rows).view(shard.dtype).view(group.size, *cell), layout, group)


def held_shard(tensor: Tensor) -> Tensor:
    """This device's shard: what a DTensor holds, or the tensor itself."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _cell(layout: Layout, group: Group) -> tuple[int, ...]:
    """The shape of the largest shard in the group, at least one element."""
    shapes = [layout.local_shape(coord) for coord in group.coords]
    return tuple(max(1, *sizes) for sizes in zip(*shapes, strict=True))


def _padded(shard: Tensor, cell: tuple[int, ...]) -> Tensor:
    if tuple(shard.shape) == cell:
        return shard.contiguous()
    out = shard.new_zeros(cell)
    out[tuple(slice(0, size) for size in shard.shape)] = shard
    return out


def _joined(rows: Tensor, layout: Layout, group: Group) -> Tensor:
    out = rows.new_empty(layout.shape)
    for row, coord in zip(rows, group.coords, strict=True):
        shape = layout.local_shape(coord)
        put_shard(out, row[tuple(slice(0, size) for size in shape)], layout, coord)
    return out


def put_shard(out: Tensor, shard: Tensor, layout: Layout, coord: Coord) -> None:
    """Write a device's shard into the whole tensor."""
    frozen = freeze(coord)
    sizes = [dim.size for dim in layout.dims]
    spots = [
        place(dim, dim.without(dim.axes), frozen) if dim.axes else slice(0, dim.size)
        for dim in layout.dims
    ]
    if all(isinstance(spot, slice) for spot in spots):
        out[tuple(spots)] = shard
        return
    index = [
        torch.tensor(list(positions_of(spot, size)), dtype=torch.long, device=out.device)
        for spot, size in zip(spots, sizes, strict=True)
    ]
    out[_crossed(index)] = shard


def _crossed(index: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """One index per dim, shaped so that together they name every combination."""
    found = list(index)
    return tuple(
        one.view([-1 if d == i else 1 for d in range(len(found))]) for i, one in enumerate(found)
    )
