"""From a collective to the move that does it on one device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch

from shardlang.ir.collective import Collective, Kind
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.edges import readings
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.moved import moved_axes
from shardlang.ir.shards import freeze, place
from shardlang.runtime.boxes import boxes_of
from shardlang.runtime.groups import Group
from shardlang.runtime.halos import Apart, Ends, Fold, Halo, Shape
from shardlang.runtime.moves import (
    Cut,
    Exchange,
    Gather,
    Move,
    Pad,
    Reduce,
    Scatter,
    drop,
    keep,
)
from shardlang.runtime.parts import Parts, moved_parts, parts_of


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


def lower(collective: Collective, site: Site, label: str = "") -> Move:
    """The move of a collective on one device; a route's is made when its rows are there."""
    if collective.kind is Kind.NOTHING:
        return keep
    if collective.kind is Kind.ZERO:
        return drop
    if collective.kind is Kind.FIRST:
        return keep if all(site.coord[axis.name] == 0 for axis in collective.axes) else drop
    if collective.members == 1 and collective.reads is None:
        return keep
    return _MOVES[collective.kind](collective, site, label)


def _where(narrow: DimLayout, wide: DimLayout, site: Site) -> slice | torch.Tensor:
    """Where this device's shard of `narrow` lies in its shard of `wide`."""
    where = place(narrow, wide, freeze(site.coord))
    return where if isinstance(where, slice) else torch.tensor(where, device=site.device)


def _slice(collective: Collective, site: Site, label: str) -> Move:
    dim, narrow, wide = collective.cut()
    return Cut(dim, _where(narrow, wide, site))


def _pad(collective: Collective, site: Site, label: str) -> Move:
    dim, narrow, wide = collective.cut()
    return Pad(dim, _where(narrow, wide, site), collective.dst.local_shape(site.coord))


def _reduce(collective: Collective, site: Site, label: str) -> Move:
    return Reduce(site.of(collective.axes), label, collective.reduce)


def _cell(layout: Layout, coord: dict[str, int], dim: int, sizes: Sequence[int]) -> Shape:
    """The shape of the largest shard among the members."""
    shape = list(layout.local_shape(coord))
    shape[dim] = max(sizes)
    return tuple(shape)


def _is_flat(parts: Parts, cell: Shape) -> bool:
    """Whether the members' shards lie one after the other in memory."""
    return parts.even and parts.in_order and math.prod(cell[: parts.dim]) == 1


def _gather(collective: Collective, site: Site, label: str) -> Move:
    group, (dim, narrow, wide) = site.of(collective.axes), collective.cut()
    parts = parts_of(dim, narrow, wide, group.coords, site.device)
    cell = _cell(collective.src, site.coord, dim, parts.sizes)
    out = collective.dst.local_shape(site.coord)
    missing = cell[dim] - parts.sizes[group.index]
    return Gather(group, label, parts, cell, out, missing, _is_flat(parts, cell))


def _scatter(collective: Collective, site: Site, label: str) -> Move:
    group, (dim, narrow, wide) = site.of(collective.axes), collective.cut()
    parts = parts_of(dim, narrow, wide, group.coords, site.device)
    cell = _cell(collective.dst, site.coord, dim, parts.sizes)
    size = parts.sizes[group.index]
    return Scatter(group, label, parts, cell, size, _is_flat(parts, cell))


def _all_to_all(collective: Collective, site: Site, label: str) -> Move:
    group = site.of(collective.axes)
    src, dst = collective.src, collective.dst
    before, after = collective.dims
    assert before is not None and after is not None
    sent = parts_of(after, dst.dims[after], src.dims[after], group.coords, site.device)
    received = parts_of(before, src.dims[before], dst.dims[before], group.coords, site.device)
    even = src.dims[before].even and dst.dims[after].even
    return _exchange_parts(collective, site, group, label, sent, received, even)


def _permute(collective: Collective, site: Site, label: str) -> Move:
    dim, src, dst = collective.cut()
    axes = moved_axes(src, dst)
    if not axes:
        return keep
    group = site.of(axes)
    sent, received = moved_parts(dim, src, dst, group.coords, group.index, site.device)
    return _exchange_parts(collective, site, group, label, sent, received, even=False)


def _exchange(collective: Collective, site: Site, label: str) -> Move:
    group, at = site.of(collective.axes), site.coord
    sent = boxes_of(collective.src, at, collective.dst, group.coords, site.device)
    received = boxes_of(collective.dst, at, collective.src, group.coords, site.device)
    shapes = tuple(received.shapes)
    counts_sent, counts = (list(map(math.prod, own.shapes)) for own in (sent, received))
    return Exchange(group, label, sent, received, shapes, counts_sent, counts, even=False)


def _halo(collective: Collective, site: Site, label: str) -> Move:
    (place, _), reads = collective.dims, collective.reads
    assert place is not None and reads is not None
    read, made = collective.src, collective.dst
    if reads.back:
        read, made = made, read
    group = site.of(collective.axes)
    coords = tuple(map(freeze, group.coords))
    each = readings(read.dims[place], made.dims[place], reads.there, coords)
    ends = Ends(place, read.local_shape(site.coord), group.index, each, reads.fill)
    move = Fold(group, label, ends) if reads.back else Halo(group, label, ends)
    return move if collective.sends else Apart(move)


def _exchange_parts(
    collective: Collective,
    site: Site,
    group: Group,
    label: str,
    sent: Parts,
    received: Parts,
    even: bool,
) -> Exchange:
    """An exchange, with the shapes that follow from its parts."""
    out = collective.src.local_shape(site.coord)
    into = collective.dst.local_shape(site.coord)
    counts_sent = [math.prod(_with(out, sent.dim, size)) for size in sent.sizes]
    shapes = tuple(_with(into, received.dim, size) for size in received.sizes)
    counts = [math.prod(shape) for shape in shapes]
    return Exchange(group, label, sent, received, shapes, counts_sent, counts, even)


def _with(shape: Shape, dim: int, size: int) -> Shape:
    return (*shape[:dim], size, *shape[dim + 1 :])


_MOVES: dict[Kind, Callable[[Collective, Site, str], Move]] = {
    Kind.SLICE: _slice,
    Kind.PAD: _pad,
    Kind.ALL_REDUCE: _reduce,
    Kind.ALL_GATHER: _gather,
    Kind.REDUCE_SCATTER: _scatter,
    Kind.ALL_TO_ALL: _all_to_all,
    Kind.PERMUTE: _permute,
    Kind.EXCHANGE: _exchange,
    Kind.HALO: _halo,
    Kind.FOLD: _halo,
}
