"""Reshards as differentiable functions on one device.

Both directions come from the one table in `shardlang.ir.reshard`: the forward collective, and as
its derivative the adjoint. (The functional collectives of torch differentiate an all-reduce
to another all-reduce, which doubles the gradients of a row-parallel layer on two devices.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shardlang.ir.experts.row_exchange import router_at
from shardlang.ir.mesh import product
from shardlang.ir.reshard import Reshard
from shardlang.runtime.autograd import Context
from shardlang.runtime.buckets import Bucket, Tensors, buckets
from shardlang.runtime.groups import Groups
from shardlang.runtime.lower import lower
from shardlang.runtime.moves import SENDING, Move, Sending, keep
from shardlang.runtime.once import once
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


def connected(move: Move, aside: bool = False) -> Action:
    """The move as a function of this device's shard; `aside` as in `Wire`."""
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


@dataclass(slots=True)
class InPlace:
    """A gradient that comes back in parts, in its place in zeros of the value's shape."""

    scatter: Action
    pad: Action

    def __call__(self, x: Tensor) -> Tensor:
        return self.pad(self.scatter(x))


class _Returns(Context, Protocol):
    back: Action


class _ReturnsTogether(Context, Protocol):
    reshards: RunReshards


class _Apply(torch.autograd.Function):
    """One reshard: `forward` on the shard, `backward` on its gradient."""

    @staticmethod
    def forward(ctx: _Returns, x: Tensor, forward: Action, backward: Action) -> Tensor:
        ctx.back = backward
        return forward(x)

    @staticmethod
    @once
    def backward(ctx: _Returns, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(grads[0]), None, None


class _ApplyTogether(torch.autograd.Function):
    """Several reshards: their moves together, their gradients together."""

    @staticmethod
    def forward(ctx: _ReturnsTogether, reshards: RunReshards, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.reshards = reshards
        ctx.set_materialize_grads(False)
        made = tuple(run_together(reshards.forwards, xs))
        frozen = [whole for whole, x in zip(made, xs, strict=True) if not x.requires_grad]
        if frozen:
            ctx.mark_non_differentiable(*frozen)
        return made

    @staticmethod
    @once
    def backward(ctx: _ReturnsTogether, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * len(grads)
        present = {i: grad for i, grad in enumerate(grads) if grad is not None}
        if present:
            done = run_together(
                [ctx.reshards.backwards[i] for i in present], list(present.values())
            )
            pads = ctx.reshards.pads
            for i, grad in zip(present, done, strict=True):
                found[i] = pads[i](grad) if pads else grad
        return None, *found


class RunReshard:
    """One reshard, ready to run: call it with this device's shard."""

    __name__: str
    __qualname__: str

    def __init__(
        self, reshard: Reshard, groups: Groups, where: str = "", held: bool = False
    ) -> None:
        """`held`: the value is at hand, so there is nothing to do forward."""
        self.label = label_of(reshard, where)
        there = connected(lower(reshard.forward, groups, f"forward {self.label}"))
        back = connected(lower(reshard.adjoint, groups, f"backward {self.label}"))
        self.forward = keep if held else there
        self.backward = InPlace(back, _pad(reshard, groups)) if held else back
        self._trivial = self.forward is keep and self.backward is keep
        self._differentiable = reshard.differentiable

    def __call__(self, x: Tensor) -> Tensor:
        if self._trivial:
            return x
        if not self._differentiable:
            return self.forward(x.detach())
        if x.requires_grad and torch.is_grad_enabled():
            out: Tensor = _Apply.apply(x, self.forward, self.backward)  # type: ignore[no-untyped-call]
            return out
        return self.forward(x)


class RunReshards:
    """Several reshards of one kind and group, ready to run as one call each way."""

    __name__: str
    __qualname__: str

    def __init__(
        self, reshards: Sequence[Reshard], groups: Groups, where: str = "", held: bool = False
    ) -> None:
        """`held`: the values are at hand, so there is nothing to do forward."""
        self.label = label_of(reshards[0], where)
        assert all(reshard.differentiable for reshard in reshards), "a max or min has no gradient"
        forward, backward = f"forward {self.label}", f"backward {self.label}"
        there = [connected(lower(s.forward, groups, forward)) for s in reshards]
        self.forwards = [keep for _ in there] if held else there
        self.backwards = [connected(lower(s.adjoint, groups, backward)) for s in reshards]
        self.pads = [_pad(s, groups) for s in reshards] if held else []

    def __call__(self, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and any(x.requires_grad for x in xs):
            out: tuple[Tensor, ...] = _ApplyTogether.apply(self, *xs)  # type: ignore[no-untyped-call]
            return out
        return tuple(run_together(self.forwards, xs))


def _pad(held: Reshard, groups: Groups) -> Action:
    """From the part of a gradient to zeros of the value's shape around it."""
    return connected(lower(Reshard(held.axes, held.dst, held.src).adjoint, groups))


class RunRoute:
    """A dispatch or collect, ready to run: call it with this device's rows and all groups."""

    __name__: str
    __qualname__: str

    def __init__(self, reshard: Reshard, groups: Groups, where: str = "") -> None:
        assert reshard.route is not None
        self.label = label_of(reshard, where)
        self.router = router_at(reshard.route.at(groups.coord), groups.device)
        self.group = groups.of(reshard.axes)
        self.transport = Wire(self.group)
        self.directions = ("forward", reshard.forward), ("backward", reshard.adjoint)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, x: Tensor, by: Tensor) -> Tensor:
        exchange = self.router.exchange(by)
        there, back = (
            Sent(
                carry(collective, self.group, exchange, x, f"{direction} {self.label}"),
                self.transport,
            )
            for direction, collective in self.directions
        )
        if x.requires_grad and torch.is_grad_enabled():
            out: Tensor = _Apply.apply(x, there, back)  # type: ignore[no-untyped-call]
            return out
        return there(x)


def label_of(reshard: Reshard, where: str = "") -> str:
    """The reshard's name for messages: `all_reduce over tp in layers.0.mlp`."""
    axes = product(reshard.axes)
    return f"{reshard.kind} over {axes}" + (f" in {where}" if where else "")
