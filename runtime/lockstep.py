"""Reshards on all simulated devices at once, by the very moves that the run makes.

Every device packs its message, the group's call is made in this process (`communicator`), and every
device unpacks what it receives. Forward and backward are autograd functions that join the graphs of
all devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from shardlang.ir.collective import Collective
from shardlang.ir.experts.row_exchange import router_at
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.reshard import Reshard
from shardlang.runtime.autograd import Context
from shardlang.runtime.buckets import Tensors, buckets
from shardlang.runtime.communication import Call
from shardlang.runtime.communicator import CallFault, Communicator
from shardlang.runtime.groups import Group, between, members
from shardlang.runtime.lower import lower
from shardlang.runtime.moves import SENDING, Move, Sending, keep
from shardlang.runtime.routes import Carry, carry

Guard = Callable[[], AbstractContextManager[object]]
"""What names the reshard in an error of its moves."""

Moves = Sequence[Move] | Sequence[Sending]
"""One move on every device."""

T = TypeVar("T")

_APART = "the gradient reaches some devices and not others, which would wait for ever"

_group = functools.lru_cache(maxsize=4096)(members)


@dataclass(frozen=True, slots=True)
class SimulatedSite:
    """One simulated device, as moves see it."""

    mesh: Mesh
    number: int

    @property
    def coord(self) -> dict[str, int]:
        """The device's coordinate."""
        return self.mesh.coord(self.number)

    @property
    def device(self) -> torch.device:
        """All devices are simulated on the CPU."""
        return torch.device("cpu")

    def of(self, axes: Iterable[Axis]) -> Group:
        """The devices that it talks to along some axes."""
        return _group(self.mesh, between(self.mesh, axes), self.number)


def sites(mesh: Mesh) -> list[SimulatedSite]:
    """All devices of a mesh."""
    return [SimulatedSite(mesh, number) for number in range(mesh.devices)]


@functools.lru_cache(maxsize=1024)
def lowered(collective: Collective, mesh: Mesh) -> tuple[Move, ...]:
    """A collective on every device."""
    return tuple(lower(collective, site) for site in sites(mesh))


def deliver(
    groups: Sequence[Group], calls: Sequence[Call], messages: Sequence[Tensor]
) -> list[Tensor]:
    """What every device receives in a call that each makes in its own group."""
    out = list(messages)
    for group in groups:
        if any(groups[rank].ranks != group.ranks for rank in group.ranks):
            raise CallFault(f"devices {group.ranks} do not agree on who calls")
        if group.index == 0:
            made = _gathered(group, calls, messages)
            for member, rank in enumerate(group.ranks):
                out[rank] = made.received(member)
    return out


def _gathered(group: Group, calls: Sequence[Call], messages: Sequence[Tensor]) -> Communicator:
    return Communicator([calls[r] for r in group.ranks], [messages[r] for r in group.ranks])


def move_all(moves: Moves, xs: Tensors) -> list[Tensor]:
    """One move on every device."""
    pairs = list(zip(moves, xs, strict=True))
    local = [move(x) for move, x in pairs if callable(move)]
    if local:
        if len(local) < len(pairs):
            raise CallFault("some devices send data where others do not")
        return local
    sending: list[Sending] = [move for move in moves if not callable(move)]
    messages = [move.pack(x) for move, x in zip(sending, xs, strict=True)]
    received = deliver([m.group for m in sending], [m.call for m in sending], messages)
    done = zip(sending, received, xs, strict=True)
    return [move.unpack(message, x) for move, message, x in done]


def move_together(moves: Sequence[Sequence[Move]], xs: Sequence[Tensors]) -> list[list[Tensor]]:
    """Several moves on every device, those of one kind in one call; by device, then by move."""
    if len(moves[0]) == 1:
        return [[x] for x in move_all([m[0] for m in moves], [x[0] for x in xs])]
    out = [
        [x if isinstance(move, SENDING) else move(x) for move, x in zip(mine, own, strict=True)]
        for mine, own in zip(moves, xs, strict=True)
    ]
    made = [buckets(mine, own) for mine, own in zip(moves, xs, strict=True)]
    for every in zip(*made, strict=True):
        groups = [moves[d][places[0]].group for d, (_, places) in enumerate(every)]
        packed = [bucket.pack([xs[d][i] for i in at]) for d, (bucket, at) in enumerate(every)]
        received = deliver(groups, [bucket.call for bucket, _ in every], packed)
        for d, (bucket, at) in enumerate(every):
            mine = [xs[d][i] for i in at]
            for i, tensor in zip(at, bucket.unpack(received[d], mine), strict=True):
                out[d][i] = tensor
    return out


class _Returns(Context, Protocol):
    back: Moves
    guard: Guard


class _ReturnsTogether(Context, Protocol):
    back: Sequence[Sequence[Move]]
    guard: Guard
    count: int


class _OnAll(torch.autograd.Function):
    """One reshard on all devices."""

    @staticmethod
    def forward(
        ctx: _Returns, forward: Moves, backward: Moves, guard: Guard, *xs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.back, ctx.guard = backward, guard
        ctx.set_materialize_grads(False)
        return tuple(move_all(forward, xs))

    @staticmethod
    def backward(ctx: _Returns, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        with ctx.guard():
            found = [grad for grad in grads if grad is not None]
            if len(found) < len(grads):
                raise CallFault(_APART)
            return (None, None, None, *move_all(ctx.back, found))


class _TogetherOnAll(torch.autograd.Function):
    """Several reshards on all devices; tensors by device, then by reshard."""

    @staticmethod
    def forward(
        ctx: _ReturnsTogether,
        forward: Sequence[Sequence[Move]],
        backward: Sequence[Sequence[Move]],
        guard: Guard,
        *xs: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.back, ctx.guard, ctx.count = backward, guard, len(forward[0])
        ctx.set_materialize_grads(False)
        moved = move_together(forward, _by_device(xs, ctx.count))
        made = tuple(x for own in moved for x in own)
        ctx.mark_non_differentiable(
            *(whole for whole, x in zip(made, xs, strict=True) if not x.requires_grad)
        )
        return made

    @staticmethod
    def backward(ctx: _ReturnsTogether, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [_present(own) for own in _by_device(grads, ctx.count)]
        present = [*given[0]]
        with ctx.guard():
            if any([*own] != present for own in given):
                raise CallFault(_APART)
            moves = [[own[i] for i in present] for own in ctx.back]
            moved = move_together(moves, [list(own.values()) for own in given])
        found: list[Tensor | None] = [None] * len(grads)
        for d, own in enumerate(moved):
            for i, grad in zip(present, own, strict=True):
                found[d * ctx.count + i] = grad
        return (None, None, None, *found)


def _present(grads: Sequence[Tensor | None]) -> dict[int, Tensor]:
    return {i: grad for i, grad in enumerate(grads) if grad is not None}


def _by_device(xs: Sequence[T], count: int) -> list[Sequence[T]]:
    return [xs[i : i + count] for i in range(0, len(xs), count)]


def _flows(xs: Iterable[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in xs)


def reshard_on_all(
    reshard: Reshard, xs: Tensors, mesh: Mesh, guard: Guard = nullcontext
) -> list[Tensor]:
    """Apply a reshard to the shards of all devices."""
    forward, backward = (lowered(way, mesh) for way in (reshard.forward, reshard.adjoint))
    if all(move is keep for move in (*forward, *backward)):
        return list(xs)
    if not reshard.differentiable:
        return move_all(forward, [x.detach() for x in xs])
    if _flows(xs):
        return list(_OnAll.apply(forward, backward, guard, *xs))  # type: ignore[no-untyped-call]
    return move_all(forward, xs)


def reshards_on_all(
    reshards: Sequence[Reshard], xs: Sequence[Tensors], mesh: Mesh, guard: Guard = nullcontext
) -> list[Tensors]:
    """Apply several reshards, sent together; shards by device, then by reshard."""
    forward, backward = (
        list(zip(*(lowered(way, mesh) for way in ways), strict=True))
        for ways in (
            [reshard.forward for reshard in reshards],
            [reshard.adjoint for reshard in reshards],
        )
    )
    if not _flows(x for own in xs for x in own):
        return [*move_together(forward, xs)]
    flat = (x for own in xs for x in own)
    made = _TogetherOnAll.apply(forward, backward, guard, *flat)  # type: ignore[no-untyped-call]
    return _by_device(made, len(reshards))


def route_on_all(
    reshard: Reshard, xs: Tensors, by: Tensors, mesh: Mesh, guard: Guard = nullcontext
) -> list[Tensor]:
    """Apply a dispatch or collect to the rows of all devices; `by` are the groups they know."""
    forward, backward = (
        [_carry(way, *each) for each in zip(sites(mesh), by, xs, strict=True)]
        for way in (reshard.forward, reshard.adjoint)
    )
    if _flows(xs):
        return list(_OnAll.apply(forward, backward, guard, *xs))  # type: ignore[no-untyped-call]
    return move_all(forward, xs)


def carry_all(collective: Collective, xs: Tensors, by: Tensors, mesh: Mesh) -> list[Tensor]:
    """One way of a route on the rows of all devices; `by` are the groups they know."""
    pairs = zip(sites(mesh), by, xs, strict=True)
    return move_all([_carry(collective, *each) for each in pairs], xs)


def _carry(collective: Collective, site: SimulatedSite, by: Tensor, x: Tensor) -> Carry:
    assert collective.route is not None
    exchange = router_at(collective.route.at(site.coord), site.device).exchange(by)
    return carry(collective, site.of(collective.axes), exchange, x, "")
