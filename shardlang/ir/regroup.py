"""Regrouping a dim: several dims joined to one, and one written as blocks or as digits.

What a reshape, a concatenation or a split does to the layout of a dim. Axes that the new grouping
cannot carry are dropped, and told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.factor import Block, Factor, block_size, stretches
from shardlang.ir.mesh import Axis


def join_factors(digits: Iterable[DimLayout]) -> DimLayout | None:
    """The dim whose mixed-radix digits are `digits`, major to minor; None if it cannot be written.

    A digit of several unequal blocks can only be the major one when the rest are whole.
    """
    blocks: list[Block] = [()]
    for digit in digits:
        if len(digit.blocks) == 1:
            blocks = [block + digit.blocks[0] for block in blocks]
        elif all(block_size(block) == 1 for block in blocks):
            blocks = [block + more for block in blocks for more in digit.blocks]
        else:
            return None
    return DimLayout(tuple(blocks))


def join_blocks(dims: Iterable[DimLayout]) -> DimLayout:
    """The dim that is `dims` one after the other."""
    return DimLayout(tuple(block for dim in dims for block in dim.blocks))


def split_blocks(dim: DimLayout, sizes: tuple[int, ...]) -> tuple[tuple[DimLayout, ...], set[Axis]]:
    """Cut a dim into consecutive stretches; the axes that do not fit the cut are dropped.

    Returns the layout of each stretch, and the dropped axes.
    """
    if len(sizes) == 1:
        return (dim,), set()
    kept = dim
    while kept.axes:
        cuts = _cut(kept, sizes)
        if cuts is not None:
            return cuts, set(dim.axes) - set(kept.axes)
        kept = kept.without(kept.axes[-1:])
    return tuple(DimLayout.whole(size) for size in sizes), set(dim.axes)


def _cut(dim: DimLayout, sizes: tuple[int, ...]) -> tuple[DimLayout, ...] | None:
    """Exact cut of a dim along its block borders."""
    cuts, queue = [], stretches(dim.blocks)
    for size in sizes:
        taken: list[Block] = []
        while sum(block_size(b) for b in taken) < size and queue:
            taken.append(queue.pop(0))
        if sum(block_size(b) for b in taken) != size:
            return None
        cuts.append(DimLayout(tuple(taken)) if taken else DimLayout.whole(0))
    return None if queue else tuple(cuts)


def split_factors(
    dim: DimLayout, sizes: tuple[int, ...]
) -> tuple[tuple[DimLayout, ...], set[Axis]]:
    """Write a dim as mixed-radix digits of the given sizes, major to minor.

    Axes that no digit can carry are dropped (a head count that does not divide, say). Returns the
    layout of each digit, and the dropped axes. Only the digits' product must equal the size.
    """
    if len(sizes) == 1:
        return (dim,), set()
    kept = dim
    while True:
        digits = _digits(kept, sizes)
        if digits is not None:
            return digits, set(dim.axes) - set(kept.axes)
        kept = kept.without(kept.axes[-1:])


def _digits(dim: DimLayout, sizes: tuple[int, ...]) -> tuple[DimLayout, ...] | None:
    """Exact digits of a dim, or None."""
    if len(dim.blocks) > 1:
        return _block_digits(dim, sizes)
    queue = list(dim.blocks[0])
    digits: list[DimLayout] = []
    for size in sizes:
        taken = _take(queue, size)
        if taken is None:
            return None
        digits.append(DimLayout((tuple(taken),)))
    return tuple(digits) if all(f.size == 1 and not f.axes for f in queue) else None


def _block_digits(dim: DimLayout, sizes: tuple[int, ...]) -> tuple[DimLayout, ...] | None:
    """Digits of an unequally packed dim: the first digit of size above 1 carries the blocks."""
    major = next((i for i, size in enumerate(sizes) if size > 1), 0)
    minor = math.prod(sizes[major + 1 :])
    heads: list[Block] = []
    for block in dim.blocks:
        queue = list(block)
        if block_size(block) % minor:
            return None
        head = _take(queue, block_size(block) // minor)
        if head is None or any(f.axes for f in queue):
            return None
        heads.append(tuple(head))
    ones = [DimLayout.whole(1)] * major
    rest = [DimLayout.whole(size) for size in sizes[major + 1 :]]
    return (*ones, DimLayout(tuple(heads)), *rest)


def _take(queue: list[Factor], size: int) -> list[Factor] | None:
    """Take factors worth `size` off the front of the queue, cutting the last one if need be."""
    taken: list[Factor] = []
    while size > 1:
        if not queue:
            return None
        head = queue.pop(0)
        if size % head.size == 0:
            taken.append(head)
            size //= head.size
            continue
        shards = _cut_factor(head, size)
        if shards is None:
            return None
        taken.append(shards[0])
        queue.insert(0, shards[1])
        size = 1
    return taken


def _cut_factor(factor: Factor, size: int) -> tuple[Factor, Factor] | None:
    """`factor` as a major digit of `size` and the rest, where the split allows it."""
    if factor.size % size:
        return None
    rest = factor.size // size
    if size % factor.shards == 0:
        return Factor(size, factor.axes), Factor(rest)
    for count in range(len(factor.axes), -1, -1):
        major, minor = Factor(size, factor.axes[:count]), Factor(rest, factor.axes[count:])
        if major.size == major.shards:
            return major, minor
    return None
