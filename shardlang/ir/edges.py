"""Edges: what the devices of a group send each other, so that each has what its part reads.

A device gets every index that its part reads and that it does not hold, once, from the device that
holds it; so an edge goes to those devices alone that need it.
"""

from __future__ import annotations

import functools
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.reads import Reads, Stretch
from shardlang.ir.shards import Frozen


class Span(NamedTuple):
    """Consecutive positions of a shard."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the indices that a device makes, one after the other.

    Attributes:
        member: whose indices they are; None for indices that read nothing.
        start: where the first is in the device's own shard, or in what the member sends.
        count: how many there are.
        step: from one to the next.
    """

    member: int | None
    start: int
    count: int
    step: int = 1


@dataclass(frozen=True, slots=True)
class Reading:
    """What one device reads.

    Attributes:
        spans: by member, what of its shard it sends to this device; of itself nothing.
        pieces: what this device makes of it.
    """

    spans: tuple[tuple[Span, ...], ...]
    pieces: tuple[Piece, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """By member, how many indices it sends."""
        return tuple(sum(span.length for span in spans) for spans in self.spans)


class _Held(NamedTuple):
    """Indices from `start` to `stop` that a device has, in its shard or in a message."""

    start: int
    stop: int
    member: int
    offset: int


@functools.lru_cache(maxsize=1024)
def readings(
    src: DimLayout, dst: DimLayout, reads: Reads, coords: tuple[Frozen, ...]
) -> tuple[Reading, ...]:
    """What every member of a group reads.

    Args:
        src: how the dim that is read lies, contiguously, over axes of the group alone.
        dst: how the dim that reads lies, contiguously, over the same axes.
    """
    holders = []
    for member, coord in enumerate(coords):
        start, count = src.start(dict(coord)), src.local_size(dict(coord))
        holders.append(_Held(start, start + count, member, start))
    holders.sort()
    found = []
    for member, coord in enumerate(coords):
        at = dict(coord)
        stretches = tuple(reads.between(dst.start(at), dst.local_size(at)))
        found.append(_reading(member, holders, stretches))
    return tuple(found)


def _reading(member: int, holders: Sequence[_Held], stretches: Sequence[Stretch]) -> Reading:
    spans: list[list[Span]] = [[] for _ in holders]
    sent = [0] * len(holders)
    held: list[_Held] = []
    for low, high in _needed(stretches):
        for one in _cut(low, high, holders):
            if one.member != member:
                count = one.stop - one.start
                spans[one.member].append(Span(one.start - one.offset, count))
                sent[one.member] += count
                one = one._replace(offset=one.start - sent[one.member] + count)
            held.append(one)
    pieces = [piece for one in stretches for piece in _pieces(one, held)]
    return Reading(tuple(map(tuple, spans)), tuple(_merged(pieces)))


def _needed(stretches: Iterable[Stretch]) -> list[tuple[int, int]]:
    """The indices that are read, each once, as ascending intervals."""
    ends: list[tuple[int, int]] = []
    for one in stretches:
        if isinstance(one, range) and abs(one.step) == 1:
            ends.append((min(one), max(one) + 1))
        elif isinstance(one, range):
            ends += ((index, index + 1) for index in one)
    found: list[tuple[int, int]] = []
    for low, high in sorted(ends):
        if found and low <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], high)
        else:
            found.append((low, high))
    return found


def _cut(low: int, high: int, holders: Sequence[_Held]) -> Iterator[_Held]:
    """An interval cut where its holder changes; `offset` is the start of the holder's shard."""
    for one in holders[_at(low, holders) :]:
        if one.start >= high:
            return
        if one.stop > low:
            yield one._replace(start=max(low, one.start), stop=min(high, one.stop))


def _at(index: int, held: Sequence[_Held]) -> int:
    """The last that begins at an index or before it."""
    return max(bisect_right(held, index, key=lambda one: one.start) - 1, 0)


def _pieces(stretch: Stretch, held: Sequence[_Held]) -> Iterator[Piece]:
    """A stretch in pieces, each of one member."""
    if isinstance(stretch, int):
        yield Piece(None, 0, stretch)
        return
    done = 0
    while done < len(stretch):
        index = stretch[done]
        one = held[_at(index, held)]
        count = 1
        if abs(stretch.step) == 1:
            left = one.stop - index if stretch.step == 1 else index - one.start + 1
            count = min(left, len(stretch) - done)
        yield Piece(one.member, index - one.offset, count, stretch.step if count > 1 else 1)
        done += count


def _merged(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Pieces that go on where the one before ends as one."""
    last: Piece | None = None
    for piece in pieces:
        joined = _join(last, piece) if last is not None else None
        if last is not None and joined is None:
            yield last
        last = joined or piece
    if last is not None:
        yield last


def _join(one: Piece, other: Piece) -> Piece | None:
    if one.member != other.member:
        return None
    if one.member is None:
        return replace(one, count=one.count + other.count)
    step = other.start - one.start if one.count == 1 else one.step
    fits = other.count == 1 or other.step == step
    if step == 0 or not fits or other.start != one.start + one.count * step:
        return None
    return replace(one, count=one.count + other.count, step=step)


@functools.lru_cache(maxsize=4096)
def reads_others(src: DimLayout, dst: DimLayout, reads: Reads) -> bool:
    """Whether some device reads what another one holds.

    Args:
        src: how the dim that is read lies.
        dst: how the dim that reads lies.
    """
    return any(any(one.counts) for one in readings(src, dst, reads, all_coords(src)))


def all_coords(dim: DimLayout) -> tuple[Frozen, ...]:
    """All coordinates along the axes of a dim."""
    places = (range(axis.size) for axis in dim.axes)
    names = [axis.name for axis in dim.axes]
    points = (zip(names, point, strict=True) for point in itertools.product(*places))
    return tuple(tuple(sorted(point)) for point in points)
