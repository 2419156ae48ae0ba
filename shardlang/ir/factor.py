"""Factors and blocks: how a stretch of indices is split over axes, one digit at a time.

Splits are balanced: over n devices a size s gives s // n each and one more to the first s % n. A
product of axes splits by its major axis first, then each shard by the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from shardlang.ir.mesh import Axis, Coord, product


def split(size: int, shards: int, index: int) -> tuple[int, int]:
    """Start and length of shard `index` of `size` split evenly into `shards`."""
    base, extra = divmod(size, shards)
    return index * base + min(index, extra), base + (index < extra)


@dataclass(frozen=True, slots=True)
class Factor:
    """A stretch of `size` consecutive indices, split over `axes` (major to minor).

    Attributes:
        at: axes among `axes` that split nothing: all lies at one place along them, and nothing
            elsewhere. By the name of the axis, this place.
    """

    size: int
    axes: tuple[Axis, ...] = ()
    at: tuple[tuple[str, int], ...] = ()

    @property
    def shards(self) -> int:
        """Number of shards."""
        return math.prod(axis.size for axis in self.axes)

    @property
    def even(self) -> bool:
        """Whether every shard has the same length."""
        return not self.at and self.size % self.shards == 0

    def span(self, coord: Coord) -> tuple[int, int]:
        """Start and length of the shard at `coord`."""
        start, length = 0, self.size
        places = dict(self.at)
        for axis in self.axes:
            if axis.name in places:
                if coord[axis.name] != places[axis.name]:
                    return 0, 0
                continue
            offset, length = split(length, axis.size, coord[axis.name])
            start += offset
        return start, length

    @property
    def least(self) -> int:
        """The length of the shortest shard."""
        if self.at:
            return 0
        size = self.size
        for axis in self.axes:
            size //= axis.size
        return size

    @property
    def most(self) -> int:
        """The length of the longest shard; without `at` the first device holds it."""
        size, places = self.size, dict(self.at)
        for axis in (axis for axis in self.axes if axis.name not in places):
            size = -(-size // axis.size)
        return size

    def __str__(self) -> str:
        where = "".join(f" at {name} = {place}" for name, place in self.at)
        return f"{self.size}@{product(self.axes)}{where}" if self.axes else str(self.size)

    def over(self, axes: tuple[Axis, ...]) -> Factor:
        """The same indices over other axes; of these, those that it lies at one place along do."""
        names = {axis.name for axis in axes}
        return Factor(self.size, axes, tuple(one for one in self.at if one[0] in names))


Block = tuple[Factor, ...]
"""A mixed-radix number of factors, major to minor."""


def block_size(block: Block) -> int:
    """Number of indices of a block."""
    return math.prod(factor.size for factor in block)


def canonical(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Blocks that are equal for all rows of blocks that hold the same indices on every device."""
    done = [b for b in (_canonical_block(block) for block in blocks) if block_size(b) > 0]
    if not done:
        return ((Factor(0),),)
    if all(not factor.axes for block in done for factor in block):
        return ((Factor(sum(block_size(block) for block in done)),),)
    return tuple(_run_lengths(done)) if len(done) > 1 else tuple(done)


def _canonical_block(factors: Iterable[Factor]) -> Block:
    merged: list[Factor] = []
    for factor in factors:
        if factor.size == 1 and not factor.axes:
            continue
        joined = _merge_pair(merged[-1], factor) if merged else None
        if joined is None:
            merged.append(factor)
        else:
            merged[-1] = joined
    return tuple(merged) or (Factor(1),)


def _merge_pair(left: Factor, right: Factor) -> Factor | None:
    """One factor that splits as `left` then `right` do, if there is one."""
    size = left.size * right.size
    if not right.axes and (left.even or right.size == 1):
        return Factor(size, left.axes, left.at)
    if left.size == left.shards and not left.at and not right.at:
        return Factor(size, left.axes + right.axes)
    return None


def _run_lengths(blocks: Iterable[Block]) -> list[Block]:
    """Blocks alike that follow one another, as one block with their count as its major factor."""
    runs: list[tuple[int, Block]] = []
    for block in blocks:
        count, body = _repeated(block)
        if runs and runs[-1][1] == body:
            count += runs.pop()[0]
        runs.append((count, body))
    return [_canonical_block((Factor(count), *body)) for count, body in runs]


def _repeated(block: Block) -> tuple[int, Block]:
    """How often a block repeats a smaller one, and that one."""
    head = block[0]
    return (1, block) if head.axes else (head.size, block[1:])


def stretches(blocks: Iterable[Block]) -> list[Block]:
    """The blocks of a dim, those that repeat a smaller one written out."""
    found: list[Block] = []
    for block in blocks:
        count, body = _repeated(block)
        found += [body] * count if body else [block]
    return found


def axes_of(blocks: tuple[Block, ...]) -> tuple[Axis, ...]:
    """All axes that split some factor, in the order in which they come."""
    if len(blocks) == 1 and len(blocks[0]) == 1:
        return blocks[0][0].axes
    factors = (factor for block in blocks for factor in block)
    return tuple(dict.fromkeys(axis for factor in factors for axis in factor.axes))


def blocks_text(blocks: tuple[Block, ...]) -> str:
    """`2304@tp(3)` or `80@tp(64,8,8)` where the blocks can be written so, else factor by factor."""
    text = _packed_text(blocks)
    if text is not None:
        return text
    shown = [
        "(" + " ".join(str(factor) for factor in block) + ")" if len(block) > 1 else str(block[0])
        for block in blocks
    ]
    return shown[0] if len(shown) == 1 else "{" + " | ".join(shown) + "}"


def _packed_text(blocks: tuple[Block, ...]) -> str | None:
    """The text of one factor, or of packed blocks that are all split by the same axes."""
    axes = axes_of(blocks)
    size = sum(block_size(block) for block in blocks)
    names = product(axes)
    if any(factor.at for block in blocks for factor in block):
        return None
    if len(blocks) == 1:
        block = blocks[0]
        if len(block) == 1:
            return str(block[0])
        if len(block) == 2 and not block[0].axes and block[1].axes == axes:
            return f"{size}@{names}({block[0].size})"
        return None
    packed = stretches(blocks)
    if any(len(block) != 1 or block[0].axes != axes for block in packed):
        return None
    sizes = [block[0].size for block in packed]
    unit = math.gcd(*sizes)
    return f"{size}@{names}({','.join(str(s // unit) for s in sizes)})"
