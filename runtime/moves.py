"""The moves of the step table on one device: sizes, places and group worked out once, at load.

A move is called with this device's piece and returns its new piece. The moves that send data also
come in two halves, `pack` and `unpack`, so that several of one kind can share one call (`Bundle`).
Uneven pieces are padded to the largest for gathers and scatters; exchanges send them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shardlang.ir import Axis, Layout
from shardlang.ir.pieces import freeze, place
from shardlang.ir.steps import Move, Step
from shardlang.runtime.groups import Group, Groups
from shardlang.runtime.parts import Parts, moved_parts, parts_of
from shardlang.runtime.watch import named
from shardlang.runtime.wire import Wire

Shape = tuple[int, ...]


@dataclass(slots=True)
class Reduce:
    """All-reduce over the group."""

    wire: Wire
    op: str
    label: str

    def __call__(self, x: Tensor) -> Tensor:
        return named(self.label, self.wire.all_reduce, x, self.op)


@dataclass(slots=True)
class Gather:
    """All-gather along one dim. `cell` is the shape of the largest piece."""

    wire: Wire
    parts: Parts
    cell: Shape
    out: Shape
    missing: int
    flat: bool
    label: str

    def __call__(self, x: Tensor) -> Tensor:
        return self.unpack(named(self.label, self.wire.all_gather, self.pack(x)))

    def pack(self, x: Tensor) -> Tensor:
        """This device's piece, as large as the largest."""
        return _grown(x, self.parts.dim, self.missing)

    def unpack(self, rows: Tensor) -> Tensor:
        """The joined tensor, from one row per member."""
        if self.flat:
            return rows.reshape(self.out)
        pieces: Sequence[Tensor] = rows.reshape(self.wire.size, *self.cell).unbind(0)
        if not self.parts.even:
            dim = self.parts.dim
            pieces = [p.narrow(dim, 0, n) for p, n in zip(pieces, self.parts.sizes, strict=True)]
        return self.parts.join(pieces)


@dataclass(slots=True)
class Scatter:
    """Reduce-scatter along one dim: the adjoint of `Gather`."""

    wire: Wire
    parts: Parts
    cell: Shape
    size: int
    flat: bool
    label: str

    def __call__(self, x: Tensor) -> Tensor:
        return self.unpack(named(self.label, self.wire.reduce_scatter, self.pack(x)))

    def pack(self, x: Tensor) -> Tensor:
        """One row per member: its part, as large as the largest."""
        if self.flat:
            return x.reshape(self.wire.size, -1)
        dim = self.parts.dim
        largest = self.cell[dim]
        pieces = self.parts.split(x)
        if not self.parts.even:
            pieces = [_grown(p, dim, largest - p.shape[dim]) for p in pieces]
        return torch.stack(list(pieces)).view(self.wire.size, -1)

    def unpack(self, row: Tensor) -> Tensor:
        """This device's part, from the row that it received."""
        out = row.reshape(self.cell)
        dim = self.parts.dim
        return out if self.size == self.cell[dim] else out.narrow(dim, 0, self.size)


@dataclass(slots=True)
class Exchange:
    """All-to-all: parts of one dim go out, parts along another (or the same) come in."""

    wire: Wire
    sent: Parts
    received: Parts
    shapes: tuple[Shape, ...]
    counts_sent: list[int]
    counts_received: list[int]
    even: bool
    label: str

    def __call__(self, x: Tensor) -> Tensor:
        pieces = self.pack(x)
        if self.even:
            swapped = named(self.label, self.wire.exchange, torch.stack(pieces).view(-1))
        else:
            joined = torch.cat([p.reshape(-1) for p in pieces])
            swapped = named(
                self.label, self.wire.exchange, joined, self.counts_sent, self.counts_received
            )
        return self.unpack(swapped.split_with_sizes(self.counts_received))

    def pack(self, x: Tensor) -> list[Tensor]:
        """What each member is sent."""
        return list(self.sent.split(x))

    def unpack(self, pieces: Sequence[Tensor]) -> Tensor:
        """The new piece, from the flat pieces of the members."""
        return self.received.join(
            [p.view(shape) for p, shape in zip(pieces, self.shapes, strict=True)]
        )


def _grown(x: Tensor, dim: int, missing: int) -> Tensor:
    """`x` with `missing` more indices at the end of `dim`."""
    if missing == 0:
        return x
    return F.pad(x, [0, 0] * (x.dim() - 1 - dim) + [0, missing])


@dataclass(slots=True)
class Cut:
    """This device's part of what it holds."""

    dim: int
    where: slice | Tensor

    def __call__(self, x: Tensor) -> Tensor:
        if isinstance(self.where, Tensor):
            return x.index_select(self.dim, self.where)
        part = x.narrow(self.dim, self.where.start, self.where.stop - self.where.start)
        return part.clone(memory_format=torch.contiguous_format)


@dataclass(slots=True)
class Pad:
    """This device's part in its place, zeros around it: the adjoint of `Cut`."""

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
    """The piece as it is."""
    return x


def drop(x: Tensor) -> Tensor:
    """Zeros in place of the piece."""
    return torch.zeros_like(x)


Action = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Change:
    """One direction of a step: what to do, and the layouts around it."""

    move: Move
    axes: tuple[Axis, ...]
    src: Layout
    dst: Layout
    reduce: str = "sum"

    @staticmethod
    def forward(step: Step) -> Change:
        """The forward direction."""
        return Change(step.forward, step.axes, step.src, step.dst, step.reduce)

    @staticmethod
    def backward(step: Step) -> Change:
        """The backward direction: from the gradient of the result to that of the operand."""
        return Change(step.backward, step.backward_axes, step.dst, step.src)

    @property
    def dim(self) -> int:
        """The one dim that becomes whole, or is cut."""
        before, after = self.src.dim_of(self.axes[0]), self.dst.dim_of(self.axes[0])
        found = before if before is not None else after
        assert found is not None
        return found


def lower(change: Change, groups: Groups, label: str = "") -> Action:
    """The action of one direction of a step on this device."""
    if change.move is Move.NOTHING or not change.axes:
        return keep
    if change.move is Move.FIRST:
        return keep if all(groups.coord[axis.name] == 0 for axis in change.axes) else drop
    if all(axis.size == 1 for axis in change.axes):
        return keep
    if change.move is Move.SLICE:
        return Cut(change.dim, _where(change.dst, change.src, change.dim, groups))
    if change.move is Move.PAD:
        where = _where(change.src, change.dst, change.dim, groups)
        return Pad(change.dim, where, change.dst.local_shape(groups.coord))
    return _SENDING[change.move](change, groups, label)


def _where(narrow: Layout, wide: Layout, dim: int, groups: Groups) -> slice | Tensor:
    """Where this device's piece of `narrow` lies in its piece of `wide`."""
    where = place(narrow.dims[dim], wide.dims[dim], freeze(groups.coord))
    return where if isinstance(where, slice) else torch.tensor(where, device=groups.device)


def _reduce(change: Change, groups: Groups, label: str) -> Action:
    return Reduce(Wire(groups.of(change.axes)), change.reduce, label)


def _cell(layout: Layout, coord: dict[str, int], dim: int, sizes: Sequence[int]) -> Shape:
    """The shape of the largest piece among the members."""
    shape = list(layout.local_shape(coord))
    shape[dim] = max(sizes)
    return tuple(shape)


def _is_flat(parts: Parts, cell: Shape) -> bool:
    """Whether the members' pieces lie one after the other in memory."""
    return parts.even and parts.in_order and math.prod(cell[: parts.dim]) == 1


def _gather(change: Change, groups: Groups, label: str) -> Action:
    group, dim = groups.of(change.axes), change.dim
    parts = parts_of(dim, change.src.dims[dim], change.dst.dims[dim], group.coords, groups.device)
    cell = _cell(change.src, groups.coord, dim, parts.sizes)
    out = change.dst.local_shape(groups.coord)
    missing = cell[dim] - parts.sizes[group.index]
    return Gather(Wire(group), parts, cell, out, missing, _is_flat(parts, cell), label)


def _scatter(change: Change, groups: Groups, label: str) -> Action:
    group, dim = groups.of(change.axes), change.dim
    parts = parts_of(dim, change.dst.dims[dim], change.src.dims[dim], group.coords, groups.device)
    cell = _cell(change.dst, groups.coord, dim, parts.sizes)
    size = parts.sizes[group.index]
    return Scatter(Wire(group), parts, cell, size, _is_flat(parts, cell), label)


def _all_to_all(change: Change, groups: Groups, label: str) -> Action:
    group = groups.of(change.axes)
    src, dst = change.src, change.dst
    before, after = src.dim_of(change.axes[0]), dst.dim_of(change.axes[0])
    assert before is not None and after is not None
    sent = parts_of(after, dst.dims[after], src.dims[after], group.coords, groups.device)
    received = parts_of(before, src.dims[before], dst.dims[before], group.coords, groups.device)
    even = src.dims[before].even and dst.dims[after].even
    return _exchange(change, groups, group, label, sent, received, even)


def _permute(change: Change, groups: Groups, label: str) -> Action:
    dim = change.dim
    src, dst = change.src.dims[dim], change.dst.dims[dim]
    group = groups.of(_moved_axes(src.axes, dst.axes))
    sent = moved_parts(dim, src, dst, groups.coord, group.coords, groups.device)
    received = moved_parts(dim, dst, src, groups.coord, group.coords, groups.device)
    return _exchange(change, groups, group, label, sent, received, even=False)


def _moved_axes(src: tuple[Axis, ...], dst: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The axes among which data moves: all but the major ones that stay as they are."""
    same = 0
    while same < min(len(src), len(dst)) and src[same] == dst[same]:
        same += 1
    return src[same:] + dst[same:]


def _exchange(
    change: Change,
    groups: Groups,
    group: Group,
    label: str,
    sent: Parts,
    received: Parts,
    even: bool,
) -> Exchange:
    """An exchange, with the shapes that follow from its parts."""
    out = change.src.local_shape(groups.coord)
    into = change.dst.local_shape(groups.coord)
    counts_sent = [math.prod(_with(out, sent.dim, size)) for size in sent.sizes]
    shapes = tuple(_with(into, received.dim, size) for size in received.sizes)
    counts = [math.prod(shape) for shape in shapes]
    return Exchange(Wire(group), sent, received, shapes, counts_sent, counts, even, label)


def _with(shape: Shape, dim: int, size: int) -> Shape:
    return (*shape[:dim], size, *shape[dim + 1 :])


_SENDING: dict[Move, Callable[[Change, Groups, str], Action]] = {
    Move.ALL_REDUCE: _reduce,
    Move.ALL_GATHER: _gather,
    Move.REDUCE_SCATTER: _scatter,
    Move.ALL_TO_ALL: _all_to_all,
    Move.PERMUTE: _permute,
}
