"""What the moves mean, on whole tensors: every value at its global index.

This is the reference that the run's moves are compared with. It knows the indices of a piece, and
nothing of groups, messages, padding or buffers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from shardlang.ir import Axis, Coord, Layout, Mesh
from shardlang.ir.route import Route
from shardlang.ir.steps import Move, Step

_COMBINE: dict[str, Any] = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}


def forward(step: Step, xs: Sequence[Tensor], mesh: Mesh) -> list[Tensor]:
    """What all devices hold after the step."""
    return _move(step.forward, step.axes, step.src, step.dst, step.reduce, xs, mesh)


def backward(step: Step, grads: Sequence[Tensor], mesh: Mesh) -> list[Tensor]:
    """The gradients of all devices before the step, from those after it."""
    return _move(step.backward, step.backward_axes, step.dst, step.src, "sum", grads, mesh)


def _move(
    move: Move, axes: Sequence[Axis], src: Layout, dst: Layout, how: str,
    xs: Sequence[Tensor], mesh: Mesh,
) -> list[Tensor]:  # fmt: skip
    if move is Move.NOTHING or not axes:
        return list(xs)
    out = []
    for at, x in zip(mesh.coords(), xs, strict=True):
        peers = list(_peers(mesh, at, axes))
        mine = [xs[mesh.device(peer)] for peer in peers]
        if move is Move.FIRST:
            out.append(x.clone() if all(at[a.name] == 0 for a in axes) else torch.zeros_like(x))
        elif move is Move.ALL_REDUCE:
            out.append(functools.reduce(_COMBINE[how], mine))
        elif move is Move.REDUCE_SCATTER:
            total = functools.reduce(torch.add, mine)
            out.append(_taken(_laid([total], src, [at]), dst, at))
        elif move in (Move.SLICE, Move.PAD):
            out.append(_taken(_laid([x], src, [at]), dst, at))
        else:
            out.append(_taken(_laid(mine, src, peers), dst, at))
    return out


def _peers(mesh: Mesh, at: Coord, axes: Sequence[Axis]) -> Iterator[dict[str, int]]:
    """The devices that differ from one along the axes alone."""
    moving = {axis.name for axis in axes}
    for other in mesh.coords():
        if all(other[name] == at[name] for name in other if name not in moving):
            yield other


def _laid(pieces: Sequence[Tensor], layout: Layout, coords: Sequence[Coord]) -> Tensor:
    """Pieces at their global indices, zeros elsewhere."""
    full = torch.zeros(layout.shape, dtype=pieces[0].dtype)
    for piece, at in zip(pieces, coords, strict=True):
        full[_crossed(layout, at)] = piece
    return full


def _taken(full: Tensor, layout: Layout, at: Coord) -> Tensor:
    """A device's piece of a whole tensor."""
    return full[_crossed(layout, at)]


def _crossed(layout: Layout, at: Coord) -> tuple[Tensor, ...]:
    """The global indices of a piece, one index tensor per dim."""
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
    route: Route, groups: Sequence[int], xs: Sequence[Tensor], mesh: Mesh, home: bool
) -> list[Tensor]:
    """Rows of all devices in routed order, or with `home` back where they lie."""
    away = routed_rows(route, groups, mesh)
    lying = [route.rows.indices(at) for at in mesh.coords()]
    src, dst = (away, lying) if home else (lying, away)
    out = []
    for device, at in enumerate(mesh.coords()):
        peers = [mesh.device(peer) for peer in _peers(mesh, at, route.axes)]
        rows = {i: xs[p][k] for p in peers for k, i in enumerate(src[p])}
        mine = [rows[i] for i in dst[device]]
        out.append(torch.stack(mine) if mine else xs[device].new_zeros((0, *xs[device].shape[1:])))
    return out
