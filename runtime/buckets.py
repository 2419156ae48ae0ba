"""Several moves of one kind and group as one call.

Their packed shards travel in one flat buffer per dtype, in the order of the reshards. The results
of a coalesced all-reduce are views of that buffer, so a bucket of gradients is copied once and
reduced once, as in DistributedDataParallel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from shardlang.runtime.communication import Call
from shardlang.runtime.halos import Fold, Halo, Shape
from shardlang.runtime.moves import SENDING, Exchange, Gather, Move, Reduce, Scatter, Sending

Tensors = Sequence[Tensor]


class Bucket(Protocol):
    """Moves that share one call: as `Sending`, for several shards."""

    @property
    def call(self) -> Call:
        """What the transport does with the messages."""
        ...

    @property
    def reads_shard(self) -> bool:
        """As of a move."""
        ...

    def pack(self, xs: Tensors, /) -> Tensor:
        """The message made of this device's shards."""
        ...

    def unpack(self, message: Tensor, xs: Tensors, /) -> list[Tensor]:
        """The new shards, made of what arrives, and of the old ones."""
        ...


class Reduces:
    """All-reduces."""

    reads_shard: ClassVar[bool] = False

    def __init__(self, moves: Sequence[Reduce], shapes: Sequence[Shape]) -> None:
        self.call = Call("all_reduce", moves[0].op, spare=True)
        self._shapes = shapes

    def pack(self, xs: Tensors) -> Tensor:
        """The shards, one after the other."""
        return torch.cat([x.reshape(-1) for x in xs])

    def unpack(self, message: Tensor, xs: Tensors) -> list[Tensor]:
        """Views of the sum."""
        parts = message.split_with_sizes([math.prod(shape) for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


class Gathers:
    """All-gathers."""

    reads_shard: ClassVar[bool] = False

    def __init__(self, moves: Sequence[Gather], shapes: Sequence[Shape]) -> None:
        self.call = moves[0].call
        self._moves, self._sizes = moves, [math.prod(move.cell) for move in moves]

    def pack(self, xs: Tensors) -> Tensor:
        """The packed shards, one after the other."""
        return torch.cat([m.pack(x).reshape(-1) for m, x in zip(self._moves, xs, strict=True)])

    def unpack(self, message: Tensor, xs: Tensors) -> list[Tensor]:
        """Each move's own columns of the members' rows."""
        rows = message.view(self._moves[0].group.size, sum(self._sizes))
        parts = rows.split_with_sizes(self._sizes, 1)
        return [m.unpack(part, x) for m, part, x in zip(self._moves, parts, xs, strict=True)]


class Scatters:
    """Reduce-scatters."""

    reads_shard: ClassVar[bool] = False

    def __init__(self, moves: Sequence[Scatter], shapes: Sequence[Shape]) -> None:
        self.call = moves[0].call
        self._moves, self._sizes = moves, [math.prod(move.cell) for move in moves]

    def pack(self, xs: Tensors) -> Tensor:
        """One row per member, with what each move has for it."""
        return torch.cat([move.pack(x) for move, x in zip(self._moves, xs, strict=True)], 1)

    def unpack(self, message: Tensor, xs: Tensors) -> list[Tensor]:
        """Each move's own stretch of the row."""
        parts = message.split_with_sizes(self._sizes)
        return [m.unpack(part, x) for m, part, x in zip(self._moves, parts, xs, strict=True)]


class Exchanges:
    """All-to-alls; halos and folds among them."""

    def __init__(self, moves: Sequence[Exchange | Halo | Fold], shapes: Sequence[Shape]) -> None:
        self._sent = [move.counts_sent for move in moves]
        self._received = [move.counts_received for move in moves]
        sent, received = (
            [sum(of) for of in zip(*counts, strict=True)] for counts in (self._sent, self._received)
        )
        self.call = Call("exchange", sent=sent, received=received)
        self.reads_shard = any(move.reads_shard for move in moves)
        self._moves = moves

    def pack(self, xs: Tensors) -> Tensor:
        """Member by member, what each move has for it."""
        packed = [move.pack(x) for move, x in zip(self._moves, xs, strict=True)]
        by_move = [x.split_with_sizes(n) for x, n in zip(packed, self._sent, strict=True)]
        return torch.cat([part for parts in zip(*by_move, strict=True) for part in parts])

    def unpack(self, message: Tensor, xs: Tensors) -> list[Tensor]:
        """Each move's own stretches of the members' messages."""
        sizes = [n for counts in zip(*self._received, strict=True) for n in counts]
        parts, count = message.split_with_sizes(sizes), len(self._moves)
        return [
            move.unpack(torch.cat(parts[i::count]), x)
            for i, (move, x) in enumerate(zip(self._moves, xs, strict=True))
        ]


_BUNDLES: dict[type, Callable[..., Bucket]] = {
    Reduce: Reduces,
    Gather: Gathers,
    Scatter: Scatters,
    Exchange: Exchanges,
    Halo: Exchanges,
    Fold: Exchanges,
}


def buckets(moves: Sequence[Move | Sending], xs: Tensors) -> list[tuple[Bucket, list[int]]]:
    """The moves that send data, those of one kind, group and dtype together; with their places."""
    found: dict[object, list[int]] = {}
    for i, (move, x) in enumerate(zip(moves, xs, strict=True)):
        if isinstance(move, SENDING):
            key = (type(move), str(move.group), getattr(move, "op", None), x.dtype)
            found.setdefault(key, []).append(i)
    return [(_bundle([moves[i] for i in at], [xs[i] for i in at]), at) for at in found.values()]


def _bundle(moves: Sequence[Move | Sending], xs: Tensors) -> Bucket:
    return _BUNDLES[type(moves[0])](moves, [tuple(x.shape) for x in xs])
