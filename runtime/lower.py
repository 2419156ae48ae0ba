"""From one direction of a step to the move that does it on one device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from shardlang.ir import Axis, Layout
from shardlang.ir.pieces import freeze, place
from shardlang.ir.steps import Move as Kind
from shardlang.ir.steps import Step
from shardlang.runtime.groups import Group
from shardlang.runtime.moves import (
    Cut,
    Exchange,
    Gather,
    Move,
    Pad,
    Reduce,
    Scatter,
    Shape,
    drop,
    keep,
)
from shardlang.runtime.parts import Parts, moved_axes, moved_parts, parts_of


class Site(Protocol):
    """What a move depends on: one device of a mesh, real or simulated."""

    @property
    def coord(self) -> dict[str, int]:
        """The device's coordinate."""
        ...

    @property
    def device(self) -> torch.device:
        """The torch device of its tensors."""
        ...

    def of(self, axes: Iterable[Axis]) -> Group:
        """The devices that it talks to along some axes."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """One direction of a step: what to do, and the layouts around it."""

    move: Kind
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


def lower(change: Change, site: Site, label: str = "") -> Move:
    """The move of one direction of a step on one device."""
    if change.move is Kind.NOTHING or not change.axes:
        return keep
    if change.move is Kind.FIRST:
        return keep if all(site.coord[axis.name] == 0 for axis in change.axes) else drop
    if all(axis.size == 1 for axis in change.axes):
        return keep
    if change.move is Kind.SLICE:
        return Cut(change.dim, _where(change.dst, change.src, change.dim, site))
    if change.move is Kind.PAD:
        where = _where(change.src, change.dst, change.dim, site)
        return Pad(change.dim, where, change.dst.local_shape(site.coord))
    return _SENDING[change.move](change, site, label)


def _where(narrow: Layout, wide: Layout, dim: int, site: Site) -> slice | torch.Tensor:
    """Where this device's piece of `narrow` lies in its piece of `wide`."""
    where = place(narrow.dims[dim], wide.dims[dim], freeze(site.coord))
    return where if isinstance(where, slice) else torch.tensor(where, device=site.device)


def _reduce(change: Change, site: Site, label: str) -> Move:
    return Reduce(site.of(change.axes), label, change.reduce)


def _cell(layout: Layout, coord: dict[str, int], dim: int, sizes: Sequence[int]) -> Shape:
    """The shape of the largest piece among the members."""
    shape = list(layout.local_shape(coord))
    shape[dim] = max(sizes)
    return tuple(shape)


def _is_flat(parts: Parts, cell: Shape) -> bool:
    """Whether the members' pieces lie one after the other in memory."""
    return parts.even and parts.in_order and math.prod(cell[: parts.dim]) == 1


def _gather(change: Change, site: Site, label: str) -> Move:
    group, dim = site.of(change.axes), change.dim
    parts = parts_of(dim, change.src.dims[dim], change.dst.dims[dim], group.coords, site.device)
    cell = _cell(change.src, site.coord, dim, parts.sizes)
    out = change.dst.local_shape(site.coord)
    missing = cell[dim] - parts.sizes[group.index]
    return Gather(group, label, parts, cell, out, missing, _is_flat(parts, cell))


def _scatter(change: Change, site: Site, label: str) -> Move:
    group, dim = site.of(change.axes), change.dim
    parts = parts_of(dim, change.dst.dims[dim], change.src.dims[dim], group.coords, site.device)
    cell = _cell(change.dst, site.coord, dim, parts.sizes)
    size = parts.sizes[group.index]
    return Scatter(group, label, parts, cell, size, _is_flat(parts, cell))


def _all_to_all(change: Change, site: Site, label: str) -> Move:
    group = site.of(change.axes)
    src, dst = change.src, change.dst
    before, after = src.dim_of(change.axes[0]), dst.dim_of(change.axes[0])
    assert before is not None and after is not None
    sent = parts_of(after, dst.dims[after], src.dims[after], group.coords, site.device)
    received = parts_of(before, src.dims[before], dst.dims[before], group.coords, site.device)
    even = src.dims[before].even and dst.dims[after].even
    return _exchange(change, site, group, label, sent, received, even)


def _permute(change: Change, site: Site, label: str) -> Move:
    dim = change.dim
    src, dst = change.src.dims[dim], change.dst.dims[dim]
    axes = moved_axes(src, dst)
    if not axes:
        return keep
    group = site.of(axes)
    sent, received = moved_parts(dim, src, dst, group.coords, group.index, site.device)
    return _exchange(change, site, group, label, sent, received, even=False)


def _exchange(
    change: Change,
    site: Site,
    group: Group,
    label: str,
    sent: Parts,
    received: Parts,
    even: bool,
) -> Exchange:
    """An exchange, with the shapes that follow from its parts."""
    out = change.src.local_shape(site.coord)
    into = change.dst.local_shape(site.coord)
    counts_sent = [math.prod(_with(out, sent.dim, size)) for size in sent.sizes]
    shapes = tuple(_with(into, received.dim, size) for size in received.sizes)
    counts = [math.prod(shape) for shape in shapes]
    return Exchange(group, label, sent, received, shapes, counts_sent, counts, even)


def _with(shape: Shape, dim: int, size: int) -> Shape:
    return (*shape[:dim], size, *shape[dim + 1 :])


_SENDING: dict[Kind, Callable[[Change, Site, str], Move]] = {
    Kind.ALL_REDUCE: _reduce,
    Kind.ALL_GATHER: _gather,
    Kind.REDUCE_SCATTER: _scatter,
    Kind.ALL_TO_ALL: _all_to_all,
    Kind.PERMUTE: _permute,
}
