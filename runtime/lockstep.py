"""Collectives on all simulated devices at once, by the very moves that the run makes.

Every device packs its message, the group's call is made in this process (`communicator`), and every
device unpacks what it receives.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.ir.collective import Collective
from shardlang.ir.experts.row_exchange import router_at
from shardlang.ir.mesh import Axis, Mesh
from shardlang.runtime.buckets import Tensors, buckets
from shardlang.runtime.communication import Call
from shardlang.runtime.communicator import CallFault, Communicator
from shardlang.runtime.groups import Group, between, members
from shardlang.runtime.lower import lower
from shardlang.runtime.moves import SENDING, Move, Sending
from shardlang.runtime.routes import Carry, carry

Moves = Sequence[Move] | Sequence[Sending]
"""One move on every device."""

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


def carry_all(collective: Collective, xs: Tensors, by: Tensors, mesh: Mesh) -> list[Tensor]:
    """One way of a route on the rows of all devices; `by` are the groups they know."""
    pairs = zip(sites(mesh), by, xs, strict=True)
    return move_all([_carry(collective, *each) for each in pairs], xs)


def _carry(collective: Collective, site: SimulatedSite, by: Tensor, x: Tensor) -> Carry:
    assert collective.route is not None
    exchange = router_at(collective.route.at(site.coord), site.device).exchange(by)
    return carry(collective, site.of(collective.axes), exchange, x, "")
