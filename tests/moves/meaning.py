"""What the moves mean, on whole tensors: every value at its global index.

This is the reference that the run's moves are compared with. It knows the indices of a shard, and
nothing of groups, messages, padding or buffers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from shardlang.ir.collective import Collective, Kind, ReduceOp
from shardlang.ir.experts.route import Route
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Coord, Mesh
from shardlang.ir.reads import Reads

_COMBINE: dict[ReduceOp, Any] = {
    ReduceOp.SUM: torch.add, ReduceOp.MAX: torch.maximum, ReduceOp.MIN: torch.minimum,
}  # fmt: skip


def moved(collective: Collective, xs: Sequence[Tensor], mesh: Mesh) -> list[Tensor]:
    """What all devices hold after a collective, routes apart."""
    kind, axes = collective.kind, collective.axes
    src, dst = collective.src, collective.dst
    if kind is Kind.NOTHING:
        return list(xs)
    out = []
    for at, x in zip(mesh.coords(), xs, strict=True):
        peers = list(_peers(mesh, at, axes))
        mine = [xs[mesh.device(peer)] for peer in peers]
        if kind is Kind.FIRST:
            out.append(x.clone() if all(at[a.name] == 0 for a in axes) else torch.zeros_like(x))
        elif kind is Kind.ALL_REDUCE:
            out.append(functools.reduce(_COMBINE[collective.reduce], mine))
        elif kind is Kind.REDUCE_SCATTER:
            total = functools.reduce(torch.add, mine)
            out.append(_taken(_laid([total], src, [at]), dst, at))
        elif kind in (Kind.SLICE, Kind.PAD):
            out.append(_taken(_laid([x], src, [at]), dst, at))
        elif collective.reads is not None:
            place, _ = collective.dims
            assert place is not None
            full = read(_laid(mine, src, peers), place, collective.reads)
            out.append(_taken(full, dst, at))
        else:
            out.append(_taken(_laid(mine, src, peers), dst, at))
    return out


def read(full: Tensor, dim: int, reads: Reads) -> Tensor:
    """A whole tensor read index by index, or what was read given back."""
    each = [one for run in reads.runs for one in run.stretches()]
    index = [i for one in each for i in (one if isinstance(one, range) else [reads.size] * one)]
    shape = [reads.size + 1 if i == dim else n for i, n in enumerate(full.shape)]
    more, chosen = full.new_zeros(shape), torch.tensor(index, dtype=torch.long)
    if reads.back:
        return more.index_add(dim, chosen, full).narrow(dim, 0, reads.size)
    more.narrow(dim, 0, reads.size).copy_(full)
    more.narrow(dim, reads.size, 1).fill_(reads.fill)
    return more.index_select(dim, chosen)


def _peers(mesh: Mesh, at: Coord, axes: Sequence[Axis]) -> Iterator[dict[str, int]]:
    """The devices that differ from one along the axes alone."""
    moving = {axis.name for axis in axes}
    for other in mesh.coords():
        if all(other[name] == at[name] for name in other if name not in moving):
            yield other


def _laid(shards: Sequence[Tensor], layout: Layout, coords: Sequence[Coord]) -> Tensor:
    """Shards at their global indices, zeros elsewhere."""
    full = torch.zeros(layout.shape, dtype=shards[0].dtype)
    for shard, at in zip(shards, coords, strict=True):
        full[crossed(layout, at)] = shard
    return full


def _taken(full: Tensor, layout: Layout, at: Coord) -> Tensor:
    """A device's shard of a whole tensor."""
    return full[crossed(layout, at)]


def crossed(layout: Layout, at: Coord) -> tuple[Tensor, ...]:
    """The global indices of a shard, one index tensor per dim."""
    rank = len(layout.dims)
    found = []
    for d, dim in enumerate(layout.dims):
        index = torch.tensor(dim.indices(at), dtype=torch.long)
        found.append(index.view([-1 if i == d else 1 for i in range(rank)]))
    return tuple(found)


def routed_rows(route: Route, groups: Sequence[int], mesh: Mesh) -> list[list[int]]:
    """The global numbers of the rows that every device has in routed order."""
    found = []
    for at in mesh.coords():
        owned = set(route.groups.indices(at))
        senders = _peers(mesh, at, route.axes)
        found.append(
            [i for peer in senders for i in route.rows.indices(peer) if groups[i] in owned]
        )
    return found


def carried(
    collective: Collective, groups: Sequence[int], xs: Sequence[Tensor], mesh: Mesh
) -> list[Tensor]:
    """Rows of all devices after a dispatch in routed order, after a collect back where they lie."""
    route = collective.route
    assert route is not None
    away = routed_rows(route, groups, mesh)
    lying = [route.rows.indices(at) for at in mesh.coords()]
    src, dst = (away, lying) if collective.kind is Kind.COLLECT else (lying, away)
    out = []
    for device, at in enumerate(mesh.coords()):
        peers = [mesh.device(peer) for peer in _peers(mesh, at, route.axes)]
        rows = {i: xs[p][k] for p in peers for k, i in enumerate(src[p])}
        mine = [rows[i] for i in dst[device]]
        out.append(torch.stack(mine) if mine else xs[device].new_zeros((0, *xs[device].shape[1:])))
    return out
