"""Several moves of one kind and group as one call.

Their packed pieces travel in one flat buffer per dtype, in the order of the steps. The results of a
coalesced all-reduce are views of that buffer, so a bundle of gradients is copied once and reduced
once, as in DistributedDataParallel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shardlang.runtime.moves import Action, Exchange, Gather, Reduce, Scatter
from shardlang.runtime.watch import named

Actions = list[Action]
Tensors = Sequence[Tensor]


def run_together(moves: Sequence[Action], xs: Tensors) -> list[Tensor]:
    """Every move on its tensor; those that send data share one call per kind, group and dtype."""
    if len(moves) == 1:
        return [moves[0](xs[0])]
    out: list[Tensor] = list(xs)
    for send, places in _bundles(moves, xs):
        sent = send([moves[i] for i in places], [xs[i] for i in places])
        for i, tensor in zip(places, sent, strict=True):
            out[i] = tensor
    return out


Send = Callable[[Any, Tensors], list[Tensor]]


def _bundles(moves: Sequence[Action], xs: Tensors) -> list[tuple[Send, list[int]]]:
    """The places of the moves that can share one call."""
    found: dict[object, tuple[Send, list[int]]] = {}
    for i, (move, x) in enumerate(zip(moves, xs, strict=True)):
        send = _BUNDLES.get(type(move), _each)
        wire = getattr(move, "wire", None)
        key = (send, wire and wire.name, getattr(move, "op", None), x.dtype)
        found.setdefault(key, (send, []))[1].append(i)
    return list(found.values())


def _each(moves: Actions, xs: Tensors) -> list[Tensor]:
    return [move(x) for move, x in zip(moves, xs, strict=True)]


def _reduce(moves: Sequence[Reduce], xs: Tensors) -> list[Tensor]:
    first = moves[0]
    flat = torch.cat([x.reshape(-1) for x in xs])
    reduced = named(first.label, first.wire.all_reduce, flat, first.op, True)
    parts = reduced.split_with_sizes([x.numel() for x in xs])
    return [part.view(x.shape) for part, x in zip(parts, xs, strict=True)]


def _gather(moves: Sequence[Gather], xs: Tensors) -> list[Tensor]:
    packed = [move.pack(x).reshape(-1) for move, x in zip(moves, xs, strict=True)]
    wire = moves[0].wire
    rows = named(moves[0].label, wire.all_gather, torch.cat(packed)).view(wire.size, -1)
    parts = rows.split_with_sizes([p.numel() for p in packed], 1)
    return [move.unpack(part) for move, part in zip(moves, parts, strict=True)]


def _scatter(moves: Sequence[Scatter], xs: Tensors) -> list[Tensor]:
    packed = [move.pack(x) for move, x in zip(moves, xs, strict=True)]
    row = named(moves[0].label, moves[0].wire.reduce_scatter, torch.cat(packed, 1))
    parts = row.split_with_sizes([p.shape[1] for p in packed])
    return [move.unpack(part) for move, part in zip(moves, parts, strict=True)]


def _exchange(moves: Sequence[Exchange], xs: Tensors) -> list[Tensor]:
    packed = [move.pack(x) for move, x in zip(moves, xs, strict=True)]
    members = range(moves[0].wire.size)
    flat = torch.cat([pieces[m].reshape(-1) for m in members for pieces in packed])
    sent = [sum(move.counts_sent[m] for move in moves) for m in members]
    counts = [move.counts_received[m] for m in members for move in moves]
    received = [sum(move.counts_received[m] for move in moves) for m in members]
    swapped = named(moves[0].label, moves[0].wire.exchange, flat, sent, received)
    pieces = swapped.split_with_sizes(counts)
    return [move.unpack(pieces[i :: len(moves)]) for i, move in enumerate(moves)]


_BUNDLES: dict[type, Send] = {
    Reduce: _reduce,
    Gather: _gather,
    Scatter: _scatter,
    Exchange: _exchange,
}
