"""Collectives on one device: a move, and the calls of its group where it sends data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from shardlang.ir.collective import Collective
from shardlang.ir.experts.row_exchange import router_at
from shardlang.runtime.buckets import Bucket, Tensors, buckets
from shardlang.runtime.groups import Groups
from shardlang.runtime.moves import SENDING, Move, Reduce, Sending
from shardlang.runtime.routes import carry
from shardlang.runtime.transport import Arriving, Wire
from shardlang.runtime.watch import named

Action = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class Sent:
    """A move that sends data, over the transport of its group."""

    move: Sending
    transport: Wire

    def __call__(self, x: Tensor) -> Tensor:
        move = self.move
        received = named(move.label, self.transport.make, move.call, move.pack(x))
        return move.unpack(received, x)

    def start(self, move: Sending | Bucket, message: Tensor) -> Arriving:
        """Begin the call of the move, or of a bucket of which it is the first."""
        return named(self.move.label, self.transport.start, move.call, message)

    def wait(self, arriving: Arriving) -> Tensor:
        """What a call brings that was begun."""
        return named(self.move.label, arriving.wait)


def connected(move: Move, aside: bool = False, spare: bool = False) -> Action:
    """The move as a function of this device's shard.

    Args:
        aside: as in `Wire`.
        spare: an all-reduce may put the sum into the shard.
    """
    if spare and isinstance(move, Reduce):
        move = replace(move, spare=True)
    return Sent(move, Wire(move.group, aside)) if isinstance(move, SENDING) else move


class Started:
    """An action that has begun; the shard that it reads must stay as it is until it is waited for.

    A move within the device is done at once.
    """

    def __init__(self, action: Action, x: Tensor) -> None:
        self._call = action if isinstance(action, Sent) else None
        if self._call is None:
            self._x: Tensor | None = action(x)
            return
        move = self._call.move
        self._arriving = self._call.start(move, move.pack(x))
        self._x = x if move.reads_shard else None

    def wait(self) -> Tensor:
        """The new shard."""
        if self._call is None:
            assert self._x is not None
            return self._x
        received = self._call.wait(self._arriving)
        return self._call.move.unpack(received, received if self._x is None else self._x)


class StartedTogether:
    """Several actions; those that send data share one call per kind, group and dtype."""

    def __init__(self, actions: Sequence[Action], xs: Sequence[Tensor]) -> None:
        moves = [action.move if isinstance(action, Sent) else action for action in actions]
        pairs = zip(actions, xs, strict=True)
        self._out = [None if isinstance(a, Sent) else a(x) for a, x in pairs]
        self._calls: list[tuple[Bucket, list[int], Sent, Arriving, Tensors | None]] = []
        for bucket, places in buckets(moves, xs):
            first = actions[places[0]]
            assert isinstance(first, Sent)
            mine = [xs[i] for i in places]
            arriving = first.start(bucket, bucket.pack(mine))
            kept = mine if bucket.reads_shard else None
            self._calls.append((bucket, places, first, arriving, kept))

    def wait(self) -> list[Tensor]:
        """The new shards."""
        for bucket, places, first, arriving, kept in self._calls:
            received = first.wait(arriving)
            made = bucket.unpack(received, kept or [received] * len(places))
            for i, tensor in zip(places, made, strict=True):
                self._out[i] = tensor
        return [x for x in self._out if x is not None]


def waited(started: Started | StartedTogether) -> Tensor | list[Tensor]:
    """What an action gives that has begun."""
    return started.wait()


def run_together(actions: Sequence[Action], xs: Sequence[Tensor]) -> list[Tensor]:
    """Every action on its tensor; those that send data share one call per kind, group and dtype."""
    if len(actions) == 1:
        return [actions[0](xs[0])]
    return StartedTogether(actions, xs).wait()


class Routed:
    """One way of a dispatch or collect: call it with this device's rows and the groups of all."""

    def __init__(self, collective: Collective, groups: Groups, label: str = "") -> None:
        assert collective.route is not None
        self.collective, self.label = collective, label
        self.router = router_at(collective.route.at(groups.coord), groups.device)
        self.group = groups.of(collective.axes)
        self.transport = Wire(self.group)

    def __call__(self, x: Tensor, by: Tensor) -> Tensor:
        exchange = self.router.exchange(by)
        move = carry(self.collective, self.group, exchange, x, self.label)
        return Sent(move, self.transport)(x)
