"""The bytes of changes of layout: as they are, and as they are expected before labels are known."""

from __future__ import annotations

from collections.abc import Iterable

from shardlang.cost.ring import sent_bytes
from shardlang.ir.graph import Pair
from shardlang.ir.node import tensor_of
from shardlang.ir.reduced import Reduced
from shardlang.ir.reshard import Change, Reshard


def expected_bytes(reshard: Reshard, itemsize: int, diff: bool) -> float:
    """Bytes of a reshard forward and, where a gradient flows, backward, before labels are known.

    Which whole values are invariant and which replicated is decided after the layouts. Until then a
    gather is taken to be replicated, so that its gradient is scattered, at the same price, and
    every second slice to be of an invariant value, so that its gradient is gathered.
    """
    sent = sent_bytes(reshard.forward, itemsize)
    if not diff:
        return sent
    if reshard.kind is Change.ALL_GATHER:
        return 2 * sent
    back = sent_bytes(reshard.adjoint, itemsize)
    return sent + (0.5 * back if reshard.kind is Change.SLICE else back)


def sent_forward(pairs: Iterable[Pair]) -> int:
    """Bytes that the busiest device sends in one forward call of some reshards."""
    return sum(
        sent_bytes(reshard.forward, tensor_of(value).dtype.itemsize) for value, reshard in pairs
    )


def sent_backward(pairs: Iterable[Pair], reduced: Reduced) -> int:
    """Bytes that the busiest device sends in one backward call of some reshards."""
    ways = [(value, reshard.adjoint) for value, reshard in pairs]
    return sum(sent_bytes(way, reduced.bytes_of(value, way)) for value, way in ways)
