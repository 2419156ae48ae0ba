"""What splitting products is worth and what it moves, before anything lies anywhere.

For choices between whole chains of ops: sizes are bytes of tensors in full, and calls those of very
many devices (`shardlang.cost.ring`).
"""

from __future__ import annotations

from collections.abc import Iterable

from shardlang.cost.ring import gather_limit, reduce_limit

_UNSPLIT = 2
"""How often a gather in the midst of a chain counts: what reads it is not split either."""


def product_worth(rows: float, columns: int, itemsize: int) -> float:
    """Bytes that splitting a product saves: as if its split side were summed there and back.

    Args:
        rows: how many rows each matrix is multiplied with.
        columns: the size of the split side.
        itemsize: bytes of one element.
    """
    return 2 * reduce_limit(1) * rows * columns * itemsize


def chain_bytes(
    sums: Iterable[int], read: Iterable[int], gathered: Iterable[int], sliced: Iterable[int]
) -> int:
    """Bytes that splitting a chain moves, forward and backward; all sizes are those of tensors.

    Args:
        sums: results of products that sum over the chain: all-reduced.
        read: whole values that products of the chain read: their gradients are all-reduced.
        gathered: split values that are read whole: gathered, and their gradients scattered.
        sliced: whole values that are read split: their gradients are gathered.
    """
    reduced = sum(map(reduce_limit, (*sums, *read)))
    there_and_back = sum(2 * gather_limit(size) for size in gathered)
    return reduced + _UNSPLIT * there_and_back + sum(map(gather_limit, sliced))


def alone_bytes(made: int, read: int, *, sums: bool) -> int:
    """Bytes that a product moves of which the matrix alone is split, forward and backward.

    The result counts once more in either way, so that of two matrices that move the same the one
    with the smaller result is split.

    Args:
        made: the size of the result.
        read: the size of what it multiplies.
        sums: whether it sums over the split side: what it multiplies is sliced, and the result
            all-reduced. Otherwise the result is gathered, and the gradient all-reduced.
    """
    reduced, gathered = (made, read) if sums else (read, made)
    return made + reduce_limit(reduced) + gather_limit(gathered)
