"""What one member of a group sends in one collective call.

The formulas are those of ring algorithms (Thakur, Rabenseifner and Gropp, 2005): an all-reduce is a
reduce-scatter and an all-gather, each of which hands every part on to the next member, n - 1 times.
Sizes are bytes of the *message*: the joined tensor of a gather or a scatter (every shard as large
as the largest), what a member holds before an all-reduce, a dispatch or a collect. An exchange
between split layouts, an all-to-all and a permute included, sends what moves, and nothing else; a
halo and a fold send what is read of other devices.
"""

from __future__ import annotations

from shardlang.cost.exchanged import edge_elements, exchanged
from shardlang.ir.collective import Collective, Kind

EXCHANGES = (Kind.ALL_TO_ALL, Kind.PERMUTE, Kind.EXCHANGE)
"""Kinds that send every index to the device that has it after: between split layouts alone."""

_ROUNDS = {
    Kind.ALL_REDUCE: 2,
    Kind.ALL_GATHER: 1,
    Kind.REDUCE_SCATTER: 1,
    Kind.DISPATCH: 1,
    Kind.COLLECT: 1,
}
"""How often a member sends the message, but for its own n-th part."""


def ring_bytes(kind: Kind, message: int, members: int) -> int:
    """Bytes that one of `members` members sends in a call with messages of `message` bytes.

    Of a kind that sends every member as much, or nothing at all.
    """
    return ring_limit(kind, message) * (members - 1) // members


def ring_limit(kind: Kind, message: int) -> int:
    """Bytes that one of very many members sends: what `ring_bytes` comes near to, and stays below.

    For choices that are made before the size of the group is known, or that do not depend on it.
    """
    return _ROUNDS.get(kind, 0) * message


def reduce_limit(size: int) -> int:
    """Bytes that one of very many members sends in an all-reduce."""
    return ring_limit(Kind.ALL_REDUCE, size)


def gather_limit(size: int) -> int:
    """Bytes that one of very many members sends in an all-gather or a reduce-scatter."""
    return ring_limit(Kind.ALL_GATHER, size)


def sent_bytes(collective: Collective, itemsize: int) -> int:
    """Bytes that the busiest device sends in one call.

    The busiest is the first device, which holds the largest shard. The shards of a gather or a
    scatter travel as large as the largest. What a dispatch or a collect sends depends on the data:
    these are the bytes of equal shares.

    Args:
        itemsize: bytes of one element.
    """
    if collective.kind in EXCHANGES:
        return exchanged(collective.src, collective.dst) * itemsize
    if collective.reads is not None:
        (place, _), reads = collective.dims, collective.reads
        assert place is not None
        return edge_elements(collective.src, collective.dst, place, reads) * itemsize
    held = collective.src.held(), collective.dst.held()
    if collective.kind is Kind.ALL_REDUCE:
        message = max(held)
    elif collective.kind in (Kind.ALL_GATHER, Kind.REDUCE_SCATTER):
        message = min(held) * collective.members
    else:
        message = held[0]
    return ring_bytes(collective.kind, message * itemsize, collective.members)
