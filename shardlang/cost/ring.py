"""What one member of a group sends in one collective call.

The formulas are those of ring algorithms (Thakur, Rabenseifner and Gropp, 2005): an all-reduce is a
reduce-scatter and an all-gather, each of which hands every part on to the next member, n - 1 times.
Sizes are bytes of the *message*: the joined tensor of a gather or a scatter (every piece as large
as the largest), what a member holds before an all-reduce, an exchange or a permute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.steps import COMMUNICATING, Move

_ROUNDS = {
    Move.ALL_REDUCE: 2,
    Move.ALL_GATHER: 1,
    Move.REDUCE_SCATTER: 1,
    Move.ALL_TO_ALL: 1,
    Move.DISPATCH: 1,
    Move.COLLECT: 1,
    Move.PERMUTE: 1,
}
"""How often a member sends the message, but for its own n-th part; nothing for the other moves."""


def ring_bytes(move: Move, message: int, ways: int) -> int:
    """Bytes that one of `ways` members sends in a call with messages of `message` bytes.

    A permute sends the message whole. Shares of an exchange are taken as equal: where they are not,
    and where rows stay that a permute need not send, the bytes are an estimate.
    """
    if move is Move.PERMUTE:
        return message if ways > 1 else 0
    return ring_limit(move, message) * (ways - 1) // ways


def ring_limit(move: Move, message: int) -> int:
    """Bytes that one of very many members sends: what `ring_bytes` comes near to, and stays below.

    For choices that are made before the size of the group is known, or that do not depend on it.
    """
    return _ROUNDS.get(move, 0) * message


def sent_bytes(
    move: Move, axes: Iterable[Axis], before: Layout, after: Layout, itemsize: int
) -> int:
    """Bytes that the busiest device sends for one move between two layouts.

    The busiest is the first device, which holds the largest piece. The pieces of a gather or a
    scatter travel as large as the largest. What a dispatch or a collect sends depends on the data:
    these are the bytes of equal shares.

    Args:
        axes: the axes that the group spans.
        before: the layout of what the move is given; of a gradient, that of the step's result.
        after: the layout of what it leaves.
        itemsize: bytes of one element.
    """
    ways = math.prod(axis.size for axis in axes)
    held = before.held(), after.held()
    if move is Move.ALL_REDUCE:
        message = max(held)
    elif move in (Move.ALL_GATHER, Move.REDUCE_SCATTER):
        message = min(held) * ways
    else:
        message = held[0]
    return ring_bytes(move, message * itemsize, ways)


def sends(move: Move, axes: Iterable[Axis]) -> bool:
    """Whether a move sends anything: it communicates, among more than one device."""
    return move in COMMUNICATING and any(axis.size > 1 for axis in axes)
