"""The moves of the reshard table on one device: sizes, places and group worked out at load.

A move within the device is called with this device's shard and returns its new shard. A move that
sends data has three parts instead: `pack` makes a message of the shard, `call` says what is done
with the messages of the group, `unpack` makes the new shard of what arrives, and of what it had. So
the run, which makes the call with other processes, and the simulator, which makes it for all
devices at once, share all the rest. Uneven shards are padded to the largest for gathers and
scatters; exchanges send them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from shardlang.ir.collective import ReduceOp
from shardlang.runtime.boxes import Boxes
from shardlang.runtime.communication import Call
from shardlang.runtime.groups import Group
from shardlang.runtime.halos import Fold, Halo, Shape
from shardlang.runtime.parts import Parts

Local = Callable[[Tensor], Tensor]


class Sending(Protocol):
    """A move that sends data between the members of a group."""

    @property
    def group(self) -> Group:
        """The members."""
        ...

    @property
    def label(self) -> str:
        """Its name for messages."""
        ...

    @property
    def call(self) -> Call:
        """What the transport does with the messages."""
        ...

    @property
    def reads_shard(self) -> bool:
        """Whether the new shard is made of the old one too, and not of what arrives alone."""
        ...

    def pack(self, x: Tensor, /) -> Tensor:
        """The message made of this device's shard."""
        ...

    def unpack(self, message: Tensor, x: Tensor, /) -> Tensor:
        """The new shard, made of what arrives, and of the old one."""
        ...


@dataclass(slots=True)
class Reduce:
    """All-reduce over the group. Where the shard is `spare` it may become the sum."""

    reads_shard: ClassVar[bool] = False
    group: Group
    label: str
    op: ReduceOp
    spare: bool = False

    @property
    def call(self) -> Call:
        """An all-reduce."""
        return Call("all_reduce", self.op, self.spare)

    def pack(self, x: Tensor) -> Tensor:
        """The shard."""
        return x

    def unpack(self, message: Tensor, x: Tensor) -> Tensor:
        """The sum."""
        return message


@dataclass(slots=True)
class Gather:
    """All-gather along one dim. `cell` is the shape of the largest shard."""

    reads_shard: ClassVar[bool] = False
    group: Group
    label: str
    parts: Parts
    cell: Shape
    out: Shape
    missing: int
    flat: bool

    @property
    def call(self) -> Call:
        """An all-gather."""
        return Call("all_gather")

    def pack(self, x: Tensor) -> Tensor:
        """This device's shard, as large as the largest."""
        return _grown(x, self.parts.dim, self.missing)

    def unpack(self, message: Tensor, x: Tensor) -> Tensor:
        """The joined tensor, from one row per member."""
        if self.flat:
            return message.reshape(self.out)
        shards: Sequence[Tensor] = message.reshape(self.group.size, *self.cell).unbind(0)
        if not self.parts.even:
            dim = self.parts.dim
            shards = [p.narrow(dim, 0, n) for p, n in zip(shards, self.parts.sizes, strict=True)]
        return self.parts.join(shards)


@dataclass(slots=True)
class Scatter:
    """Reduce-scatter along one dim: the adjoint of `Gather`."""

    reads_shard: ClassVar[bool] = False
    group: Group
    label: str
    parts: Parts
    cell: Shape
    size: int
    flat: bool

    @property
    def call(self) -> Call:
        """A reduce-scatter."""
        return Call("reduce_scatter")

    def pack(self, x: Tensor) -> Tensor:
        """One row per member: its part, as large as the largest."""
        rows = self.group.size, math.prod(self.cell)
        if self.flat:
            return x.reshape(rows)
        dim = self.parts.dim
        largest = self.cell[dim]
        shards = self.parts.split(x)
        if not self.parts.even:
            shards = [_grown(p, dim, largest - p.shape[dim]) for p in shards]
        return torch.stack(list(shards)).view(rows)

    def unpack(self, message: Tensor, x: Tensor) -> Tensor:
        """This device's shard, from the row that it received."""
        out = message.reshape(self.cell)
        dim = self.parts.dim
        return out if self.size == self.cell[dim] else out.narrow(dim, 0, self.size)


@dataclass(slots=True)
class Exchange:
    """All-to-all: parts of the old shard go out, parts of the new one come in."""

    reads_shard: ClassVar[bool] = False
    group: Group
    label: str
    sent: Parts | Boxes
    received: Parts | Boxes
    shapes: tuple[Shape, ...]
    counts_sent: list[int]
    counts_received: list[int]
    even: bool

    @property
    def call(self) -> Call:
        """An all-to-all."""
        if self.even:
            return Call("exchange")
        return Call("exchange", sent=self.counts_sent, received=self.counts_received)

    def pack(self, x: Tensor) -> Tensor:
        """What each member is sent, one after the other."""
        shards = self.split(x)
        if self.even:
            return torch.stack(shards).view(-1)
        return torch.cat([shard.reshape(-1) for shard in shards])

    def unpack(self, message: Tensor, x: Tensor) -> Tensor:
        """The new shard, from those of the members."""
        return self.join(message.split_with_sizes(self.counts_received))

    def split(self, x: Tensor) -> list[Tensor]:
        """What each member is sent."""
        return list(self.sent.split(x))

    def join(self, shards: Sequence[Tensor]) -> Tensor:
        """The new shard, from the flat shards of the members."""
        shaped = [p.view(shape) for p, shape in zip(shards, self.shapes, strict=True)]
        return self.received.join(shaped)


SENDING = (Reduce, Gather, Scatter, Exchange, Halo, Fold)
"""The moves of reshards that send data."""

Move = Local | Reduce | Gather | Scatter | Exchange | Halo | Fold


def _grown(x: Tensor, dim: int, missing: int) -> Tensor:
    """`x` with `missing` more indices at the end of `dim`."""
    if missing == 0:
        return x
    return F.pad(x, [0, 0] * (x.dim() - 1 - dim) + [0, missing])


@dataclass(slots=True)
class Cut:
    """This device's shard of what it holds."""

    dim: int
    where: slice | Tensor

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(self.where, Tensor):
            return x.index_select(self.dim, self.where)
        part = x.narrow(self.dim, self.where.start, self.where.stop - self.where.start)
        return part.clone(memory_format=torch.contiguous_format)


@dataclass(slots=True)
class Pad:
    """This device's shard in its place, zeros around it: the adjoint of `Cut`."""

    dim: int
    where: slice | Tensor
    out: Shape

    def __call__(self, x: Tensor) -> Tensor:
        out = x.new_zeros(self.out)
        if isinstance(self.where, Tensor):
            return out.index_copy_(self.dim, self.where, x)
        out.narrow(self.dim, self.where.start, self.where.stop - self.where.start).copy_(x)
        return out


def keep(x: Tensor) -> Tensor:
    """The shard as it is."""
    return x


def drop(x: Tensor) -> Tensor:
    """Zeros in place of the shard."""
    return torch.zeros_like(x)
