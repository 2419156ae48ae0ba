"""The moves of a halo: what a device's part of a dim reads of other devices, and back.

A device sends others the spans of its shard that they read, and puts its part together from its
own shard and from what it gets. Back, it sends the sums over the readers of each index, and adds
what it gets to its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shardlang.ir.edges import Piece, Reading, Span
from shardlang.runtime.communication import Call
from shardlang.runtime.groups import Group

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ends:
    """What one device of a group gives the others and reads of them, along one dim.

    Attributes:
        held: the shape of its shard of what is read.
        readings: of every member.
        fill: the value where nothing is read.
    """

    dim: int
    held: Shape
    index: int
    readings: tuple[Reading, ...]
    fill: complex

    @property
    def mine(self) -> Reading:
        """What this device reads."""
        return self.readings[self.index]

    @property
    def given(self) -> list[int]:
        """How many elements it gives each member."""
        return [one.counts[self.index] * self._row for one in self.readings]

    @property
    def got(self) -> list[int]:
        """How many elements it gets from each."""
        return [count * self._row for count in self.mine.counts]

    @property
    def _row(self) -> int:
        return math.prod(self.held[: self.dim]) * math.prod(self.held[self.dim + 1 :])

    def spans(self) -> list[tuple[Span, ...]]:
        """What it gives: by member the spans of its shard."""
        return [one.spans[self.index] for one in self.readings]

    def sized(self, count: int) -> Shape:
        """The shape of so many indices of the dim."""
        return (*self.held[: self.dim], count, *self.held[self.dim + 1 :])

    def by_member(self, message: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """A flat message cut by member: of each, so many indices."""
        flat = message.split_with_sizes([count * self._row for count in counts])
        return [part.view(self.sized(n)) for part, n in zip(flat, counts, strict=True)]


@dataclass(slots=True)
class Halo:
    """Every device gets what its part reads."""

    reads_shard: ClassVar[bool] = True
    group: Group
    label: str
    ends: Ends

    @property
    def call(self) -> Call:
        """An exchange of the spans that are read."""
        return Call("exchange", sent=self.counts_sent, received=self.counts_received)

    @property
    def counts_sent(self) -> list[int]:
        """By member, how many elements go there."""
        return self.ends.given

    @property
    def counts_received(self) -> list[int]:
        """By member, how many come from there."""
        return self.ends.got

    def pack(self, x: Tensor) -> Tensor:
        """The spans that others read, member by member, flat."""
        dim = self.ends.dim
        given = [
            torch.cat([x.narrow(dim, *span) for span in spans], dim).reshape(-1)
            for spans in self.ends.spans()
            if spans
        ]
        return torch.cat(given) if given else x.new_empty(0)

    def unpack(self, message: Tensor, x: Tensor) -> Tensor:
        """The device's part, from its shard and from what arrives."""
        ends = self.ends
        have = ends.by_member(message, ends.mine.counts)
        have[ends.index] = x
        made = [self._made(piece, have, x) for piece in ends.mine.pieces]
        return torch.cat(made, ends.dim) if made else x.new_empty(ends.sized(0))

    def _made(self, piece: Piece, have: Sequence[Tensor], x: Tensor) -> Tensor:
        if piece.member is None:
            return x.new_full(self.ends.sized(piece.count), self.ends.fill)
        dim = self.ends.dim
        return turned(stretch(have[piece.member], dim, piece), dim, piece)


@dataclass(slots=True)
class Fold:
    """The adjoint: every index gets the sum over those that read it."""

    reads_shard: ClassVar[bool] = True
    group: Group
    label: str
    ends: Ends

    @property
    def call(self) -> Call:
        """An exchange the other way."""
        return Call("exchange", sent=self.counts_sent, received=self.counts_received)

    @property
    def counts_sent(self) -> list[int]:
        """By member, how many elements go there."""
        return self.ends.got

    @property
    def counts_received(self) -> list[int]:
        """By member, how many come from there."""
        return self.ends.given

    def pack(self, x: Tensor) -> Tensor:
        """The sums for the others' indices, member by member, flat."""
        sums = [x.new_zeros(self.ends.sized(count)) for count in self.ends.mine.counts]
        self._add(x, [None if m == self.ends.index else one for m, one in enumerate(sums)])
        return torch.cat([one.reshape(-1) for one in sums])

    def unpack(self, message: Tensor, x: Tensor) -> Tensor:
        """The sums for the device's own indices, of its own readers and of what arrives."""
        ends = self.ends
        out = x.new_zeros(ends.held)
        self._add(x, [out if m == ends.index else None for m in range(len(ends.readings))])
        counts = [one.counts[ends.index] for one in ends.readings]
        for spans, part in zip(ends.spans(), ends.by_member(message, counts), strict=True):
            sums = part.split_with_sizes([span.length for span in spans], ends.dim)
            for span, own in zip(spans, sums, strict=True):
                out.narrow(ends.dim, *span).add_(own)
        return out

    def _add(self, x: Tensor, sums: Sequence[Tensor | None]) -> None:
        """Add the pieces of a part to the sums of the members that are asked for."""
        dim, done = self.ends.dim, 0
        for piece in self.ends.mine.pieces:
            into = None if piece.member is None else sums[piece.member]
            if into is not None:
                own = x.narrow(dim, done, piece.count)
                stretch(into, dim, piece).add_(turned(own, dim, piece))
            done += piece.count


@dataclass(slots=True)
class Apart:
    """A halo or fold in which no device reads another: it is done without a call."""

    move: Halo | Fold

    def __call__(self, x: Tensor) -> Tensor:
        return self.move.unpack(x.new_empty(0), x)


def stretch(x: Tensor, dim: int, piece: Piece) -> Tensor:
    """A view of the indices of a piece, in ascending order."""
    step = abs(piece.step)
    first = min(piece.start, piece.start + (piece.count - 1) * piece.step)
    view = x.narrow(dim, first, (piece.count - 1) * step + 1)
    return view[(slice(None),) * dim + (slice(None, None, step),)] if step > 1 else view


def turned(x: Tensor, dim: int, piece: Piece) -> Tensor:
    """The indices of a piece from ascending order to its own, or back."""
    return x.flip(dim) if piece.step < 0 else x
