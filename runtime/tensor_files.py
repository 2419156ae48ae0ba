"""Sharded tensors in files: as chunks for `torch.distributed.checkpoint`, and pickled.

A chunk is a stretch of the piece that is contiguous in the whole tensor in every dim, so a packed
dim has one per block. Chunks say where they lie; such a checkpoint loads on any mesh. A pickled
tensor is one device's piece, and loads on that device alone.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shardlang.ir import Axis, Coord, DimLayout, Layout
from shardlang.ir.layout import Factor
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.sharding import Sharding

if TYPE_CHECKING:
    from shardlang.runtime.tensor import Sharded

Chunk = tuple[tuple[int, ...], tuple[int, ...], tuple[slice, ...]]
"""The offsets of a chunk in the whole tensor, its sizes, and where it lies in the piece."""


def chunks(layout: Layout, coord: Coord) -> list[Chunk]:
    """The chunks of this device's piece; one without elements for a tensor that has none."""
    found = []
    for parts in itertools.product(*(_stretches(dim, coord) for dim in layout.dims)):
        places = tuple(slice(at, at + length) for _, at, length in parts)
        found.append((tuple(p[0] for p in parts), tuple(p[2] for p in parts), places))
    return found


def _stretches(dim: DimLayout, coord: Coord) -> list[tuple[int, int, int]]:
    """Start in the whole dim, start in the piece and length of each contiguous stretch."""
    if not dim.axes:
        return [(0, 0, dim.size)]
    runs: list[tuple[int, int, int]] = []
    for at, index in enumerate(dim.indices(coord)):
        if runs and index == runs[-1][0] + runs[-1][2]:
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((index, at, 1))
    return runs


def _chunks_of(tensor: Sharded) -> list[Chunk]:
    sharding = tensor.sharding
    return chunks(sharding.layout, sharding.groups.coord)


def write_items(tensor: Sharded, name: str) -> list[Any]:
    """What a checkpoint writes of this device's piece."""
    from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

    properties = TensorProperties.create_from_tensor(tensor._local_tensor)
    return [
        WriteItem(
            index=MetadataIndex(name, chunk.offsets),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=tensor.size()),
        )
        for chunk in chunk_list(tensor)
    ]


def chunk_list(tensor: Sharded) -> list[Any]:
    """What a checkpoint reads of this device's piece."""
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    return [
        ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
        for offsets, sizes, _ in _chunks_of(tensor)
    ]


def chunk_at(tensor: Sharded, index: Any) -> Tensor:
    """The memory of one chunk."""
    wanted = tuple(index.offset or (0,) * tensor.dim())
    places = next(places for offsets, _, places in _chunks_of(tensor) if offsets == wanted)
    return tensor._local_tensor.detach()[places]


_LIVE: weakref.WeakSet[Groups] = weakref.WeakSet()
"""The meshes that this process takes part in."""


def remember(groups: Groups) -> None:
    """Let tensors that were pickled on this mesh be read back."""
    _LIVE.add(groups)


def reduced(tensor: Sharded) -> tuple[Any, ...]:
    """The tensor as plain values, for pickle."""
    sharding = tensor.sharding
    mesh = tuple((axis.name, axis.size) for axis in sharding.groups.mesh.axes)
    dims = tuple(
        tuple(tuple((f.size, tuple(a.name for a in f.axes)) for f in block) for block in dim.blocks)
        for dim in sharding.layout.dims
    )
    flags = (tensor.requires_grad, hasattr(tensor, "_is_param"))
    coord = tuple(sharding.groups.coord[axis.name] for axis in sharding.groups.mesh.axes)
    return restored, (tensor._local_tensor.detach(), mesh, coord, dims, flags)


def restored(piece: Tensor, mesh: Any, coord: Any, dims: Any, flags: tuple[bool, bool]) -> Sharded:
    """A pickled tensor, on the device that held it.

    Raises:
        RunError: SH0622, this process is not that device.
    """
    from shardlang.runtime.tensor import sharded

    axes = {name: Axis(name, size) for name, size in mesh}
    groups = _groups_of(mesh)
    mine = {axis.name: axis for axis in groups.mesh.axes} if groups else axes
    layout = Layout(
        tuple(
            DimLayout(
                tuple(tuple(Factor(n, tuple(mine[a] for a in by)) for n, by in b) for b in dim)
            )
            for dim in dims
        )
    )
    at = dict(zip(axes, coord, strict=True))
    if groups is None or any(groups.coord[a.name] != at[a.name] for a in layout.sharded):
        raise _elsewhere(layout, at)
    made = sharded(piece.to(groups.device), Sharding(layout, groups), flags[0])
    if flags[1]:
        made._is_param = True
    return made


def _groups_of(mesh: Any) -> Groups | None:
    return next(
        (g for g in _LIVE if tuple((a.name, a.size) for a in g.mesh.axes) == tuple(mesh)), None
    )


def _elsewhere(layout: Layout, at: dict[str, int]) -> RunError:
    where = ", ".join(f"{name} = {index}" for name, index in at.items())
    return RunError(
        "SH0622",
        f"this file holds the piece of a tensor {layout} of the device at {where}, and this"
        " process is not that device",
        help="load it after `load()` on the same mesh, one file per rank; for any other mesh or"
        " one process, save with `torch.distributed.checkpoint`, or gather with"
        " `get_model_state_dict(..., options=StateDictOptions(full_state_dict=True))`",
    )


torch.serialization.add_safe_globals([restored])
