"""Sharded tensors in files: as chunks for `torch.distributed.checkpoint`, and pickled.

A chunk is a stretch of the shard that is contiguous in the whole tensor in every dim, so a packed
dim has one per block. Chunks say where they lie; such a checkpoint loads on any mesh. A pickled
tensor is one device's shard, and loads on that device alone.
"""

from __future__ import annotations

import itertools
import threading
import warnings
import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.factor import Factor
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Coord
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.tensor_shards import ShardedBase

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
    from torch.distributed.checkpoint.planner import WriteItem

Chunk = tuple[tuple[int, ...], tuple[int, ...], tuple[slice, ...]]
"""The offsets of a chunk in the whole tensor, its sizes, and where it lies in the shard."""


PlainMesh = tuple[tuple[str, int], ...]
"""Name and size of each axis."""

PlainFactor = tuple[int, tuple[str, ...], tuple[tuple[str, int], ...]]
PlainDim = tuple[tuple[PlainFactor, ...], ...]
PlainDims = tuple[PlainDim, ...]
"""Of each dim the blocks, of each block the factors: its size, its axes, and `Factor.at`."""


def chunks(layout: Layout, coord: Coord) -> list[Chunk]:
    """The chunks of this device's shard; one without elements for a tensor that has none."""
    found = []
    for parts in itertools.product(*(_stretches(dim, coord) for dim in layout.dims)):
        places = tuple(slice(at, at + length) for _, at, length in parts)
        found.append((tuple(p[0] for p in parts), tuple(p[2] for p in parts), places))
    return found


def _stretches(dim: DimLayout, coord: Coord) -> list[tuple[int, int, int]]:
    """Start in the whole dim, start in the shard and length of each contiguous stretch."""
    if not dim.axes:
        return [(0, 0, dim.size)]
    runs: list[tuple[int, int, int]] = []
    for at, index in enumerate(dim.indices(coord)):
        if runs and index == runs[-1][0] + runs[-1][2]:
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((index, at, 1))
    return runs


def _chunks_of(tensor: ShardedBase) -> list[Chunk]:
    sharding = tensor.sharding
    return chunks(sharding.layout, sharding.groups.coord)


def write_items(tensor: ShardedBase, name: str) -> list[WriteItem]:
    """What a checkpoint writes of this device's shard."""
    from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

    if tensor.sharding.split:
        count_saved()
    properties = TensorProperties.create_from_tensor(tensor._local_tensor)
    return [
        WriteItem(
            index=MetadataIndex(name, chunk.offsets),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=tensor.size()),
        )
        for chunk in chunk_list(tensor)
    ]


def chunk_list(tensor: ShardedBase) -> list[ChunkStorageMetadata]:
    """What a checkpoint reads of this device's shard."""
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    return [
        ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
        for offsets, sizes, _ in _chunks_of(tensor)
    ]


def chunk_at(tensor: ShardedBase, index: MetadataIndex) -> Tensor:
    """The memory of one chunk."""
    wanted = tuple(index.offset or (0,) * tensor.dim())
    places = next(places for offsets, _, places in _chunks_of(tensor) if offsets == wanted)
    return tensor._local_tensor.detach()[places]


_LIVE: weakref.WeakSet[Groups] = weakref.WeakSet()
"""The meshes that this process takes part in."""


def remember(groups: Groups) -> None:
    """Let tensors that were pickled on this mesh be read back."""
    _LIVE.add(groups)


_SAVED = [0]
"""How many shards the main thread has saved since the ranks last compared themselves."""


def count_saved() -> None:
    """Count a shard that is saved: all ranks save alike, or one of them saves half a model."""
    _SAVED[0] += threading.current_thread() is threading.main_thread()


def note_pickled() -> None:
    """Say that a shard is pickled: what one rank saves is not the model."""
    count_saved()
    warnings.warn(
        "a sharded tensor is pickled as the shard of this device alone: every rank must save a"
        " file of its own, which loads on that rank alone; for one checkpoint that loads anywhere,"
        " use `torch.distributed.checkpoint.save`, or gather on every rank with `full_tensor()`",
        RuntimeWarning,
        stacklevel=3,
    )


def saved_since() -> tuple[str, ...]:
    """In words, how many shards this rank has saved since it was asked last."""
    count, _SAVED[0] = _SAVED[0], 0
    return (f"{count} shards saved",) if count else ()


def values_of(tensor: ShardedBase) -> tuple[PlainMesh, tuple[int, ...], PlainDims]:
    """How a tensor lies, as plain values for `sharding_of_values`."""
    sharding = tensor.sharding
    axes = sharding.groups.mesh.axes
    dims = tuple(
        tuple(
            tuple((f.size, tuple(a.name for a in f.axes), f.at) for f in block)
            for block in dim.blocks
        )
        for dim in sharding.layout.dims
    )
    coord = tuple(sharding.groups.coord[axis.name] for axis in axes)
    return tuple((axis.name, axis.size) for axis in axes), coord, dims


def sharding_of_values(mesh: PlainMesh, coord: tuple[int, ...], dims: PlainDims) -> Sharding:
    """How a pickled tensor lies, on the device that held it.

    Raises:
        RunError: SH0622, this process is not that device.
    """
    groups = _groups_of(mesh)
    known = groups.mesh.axes if groups else [Axis(name, size) for name, size in mesh]
    axes = {axis.name: axis for axis in known}
    layout = Layout(tuple(DimLayout(_blocks(dim, axes)) for dim in dims))
    at = dict(zip(axes, coord, strict=True))
    if groups is None or any(groups.coord[a.name] != at[a.name] for a in layout.sharded):
        raise _elsewhere(layout, at)
    return Sharding(layout, groups)


def _blocks(dim: PlainDim, axes: dict[str, Axis]) -> tuple[tuple[Factor, ...], ...]:
    return tuple(
        tuple(Factor(n, tuple(axes[a] for a in by), at) for n, by, at in block) for block in dim
    )


def _groups_of(mesh: PlainMesh) -> Groups | None:
    return next(
        (g for g in _LIVE if tuple((a.name, a.size) for a in g.mesh.axes) == tuple(mesh)), None
    )


def _elsewhere(layout: Layout, at: dict[str, int]) -> RunError:
    where = ", ".join(f"{name} = {index}" for name, index in at.items())
    return RunError(
        "SH0622",
        f"this file holds the shard of a tensor {layout} of the device at {where}, and this"
        " process is not that device",
        help="load it after `load()` on the same mesh, one file per rank; for any other mesh or"
        " one process, save with `torch.distributed.checkpoint`, or gather with"
        " `get_model_state_dict(..., options=StateDictOptions(full_state_dict=True))`",
    )
