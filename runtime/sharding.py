"""How one tensor of the run lies on the devices: its layout, and the processes that hold it.

Tools of torch read a DTensor's placements. A `Shard` splits a dim as `torch.chunk` does, by the
mesh dims from left to right. What lies otherwise, in packed blocks, in balanced uneven shards or
over axes in another order, has the placement `Cut`, which is not one of torch's `Shard`s.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from shardlang.ir.compat import dtensor_spec
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.factor import split
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Coord
from shardlang.ir.shards import shard_of
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.transport import Wire
from shardlang.runtime.whole import whole

if TYPE_CHECKING:
    from shardlang.ir.compat import DTensorSpec


class Cut(Shard):
    """A dim split in a way of our own; its text is the layout's.

    `in_order`: whether the axes that split it stand as in the mesh.
    """

    def __init__(self, dim: int, layout: DimLayout, in_order: bool) -> None:
        super().__init__(dim)
        self.layout, self.in_order = layout, in_order

    def _local_shard_size_and_offset(
        self, curr_local_size: int, num_chunks: int, rank: int | torch.SymInt
    ) -> tuple[int, int]:
        """One axis's share of a contiguous split, for torch's loaders.

        Raises:
            RunError: SH0621, the shard is not contiguous.
        """
        if not (self.layout.plain and self.in_order):
            raise RunError(
                "SH0621",
                f"torch cannot cut a dim that lies as {self.layout} out of a whole tensor",
                help="give every rank the whole tensors, without `broadcast_from_rank0`",
            )
        start, length = split(curr_local_size, num_chunks, int(rank))
        return length, start

    def __eq__(self, other: object) -> bool:
        # A DTensorSpec asks whether each placement that splits a dim equals the `Shard` of the dim,
        # and goes on to say in which order axes split. `alike` tells the two apart.
        if type(other) is Shard:
            return other.dim == self.dim
        return isinstance(other, Cut) and (self.dim, self.layout) == (other.dim, other.layout)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.dim, self.layout))

    def __repr__(self) -> str:
        return f"Cut(dim={self.dim}, {self.layout})"

    __str__ = __repr__

    def __reduce__(self) -> tuple[object, ...]:
        return Cut, (self.dim, self.layout, self.in_order)


def alike(some: Sequence[Placement], others: Sequence[Placement]) -> bool:
    """Whether placements say the same."""
    pairs = list(zip(some, others, strict=False))
    return len(some) == len(others) and all(type(a) is type(b) and a == b for a, b in pairs)


@dataclass(frozen=True, slots=True, eq=False)
class Sharding:
    """A layout on this device; made once for a tensor, and shared by all that lie like it."""

    layout: Layout
    groups: Groups
    _specs: dict[torch.dtype, DTensorSpec] = field(default_factory=dict)

    def __deepcopy__(self, memo: object) -> Sharding:
        """It never changes, and process groups have no copies."""
        return self

    @property
    def split(self) -> bool:
        """Whether any axis splits the tensor."""
        return any(axis.size > 1 for axis in self.layout.sharded)

    @property
    def counted(self) -> bool:
        """Whether this device is the first of those that hold the same shard."""
        mine = set(self.layout.sharded)
        coord = self.groups.coord
        return all(coord[axis.name] == 0 for axis in self.groups.mesh.axes if axis not in mine)

    def same(self, other: Sharding) -> bool:
        """Whether tensors of both lie alike."""
        return self is other or (
            self.groups.mesh == other.groups.mesh and self.layout == other.layout
        )

    def cut(self, full: Tensor) -> Tensor:
        """This device's shard of a whole tensor, or of one that is broadcast to it."""
        dims = self.layout.dims
        given = tuple(full.shape)
        mine = dims[len(dims) - len(given) :]
        pairs = zip(mine, given, strict=True)
        fit = tuple(d if d.size == size else DimLayout.whole(size) for d, size in pairs)
        return shard_of(full, Layout(fit), self.groups.coord)

    def whole(self, shard: Tensor) -> Tensor:
        """The whole tensor on every device, the shard itself if nothing is split. Collective."""
        return whole(shard, self.layout, self.groups)

    def spec(self, dtype: torch.dtype) -> DTensorSpec:
        """What a DTensor of this sharding carries."""
        if dtype not in self._specs:
            made = dtensor_spec(
                self.groups.device_mesh(),
                placements_of(self.layout, self.groups),
                self.layout.shape,
                dtype,
            )
            self._specs[dtype] = made
            _KNOWN[made] = self
        return self._specs[dtype]


_KNOWN: dict[object, Sharding] = {}
"""The sharding behind each `DTensorSpec`."""


def plain_dtensor(tensor: DTensor) -> Tensor:
    """The whole of a DTensor that torch has made. Collective."""
    held = tensor._local_tensor
    if held.shape == tensor.shape:
        return held
    known = _KNOWN.get(tensor._spec)
    return known.whole(held) if known is not None else tensor.full_tensor()


@lru_cache(maxsize=64)
def transport_to_all(groups: Groups) -> Wire:
    """The calls between all devices."""
    return Wire(groups.everyone())


def placements_of(layout: Layout, groups: Groups) -> tuple[Placement, ...]:
    """One placement per mesh axis, in the order of the mesh."""
    order = [axis.name for axis in groups.mesh.axes]
    found: dict[str, Placement] = {}
    for number, dim in enumerate(layout.dims):
        names = [axis.name for axis in dim.axes]
        in_order = names == sorted(names, key=order.index)
        made = Shard(number) if in_order and _like_chunks(dim) else Cut(number, dim, in_order)
        found.update(dict.fromkeys(names, made))
    return tuple(found.get(name, Replicate()) for name in order)


@lru_cache(maxsize=4096)
def _like_chunks(dim: DimLayout) -> bool:
    """Whether every device's shard of the dim is the one that `torch.chunk` gives."""
    if not dim.plain:
        return False
    names = [axis.name for axis in dim.axes]
    points = itertools.product(*(range(axis.size) for axis in dim.axes))
    return all(_same_shard(dim, dict(zip(names, point, strict=True))) for point in points)


def _same_shard(dim: DimLayout, coord: Coord) -> bool:
    start, length = 0, dim.size
    for axis in dim.axes:
        step = -(-length // axis.size)
        offset = min(step * coord[axis.name], length)
        start, length = start + offset, min(step, length - offset)
    return length == dim.local_size(coord) and (length == 0 or start == dim.start(coord))
