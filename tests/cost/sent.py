"""What the moves of a reshard really send: the messages of all devices, handed on around rings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from unittest.mock import patch

from torch import Tensor

from shardlang.ir.collective import Collective
from shardlang.ir.mesh import Mesh
from shardlang.runtime import lockstep
from shardlang.runtime.communication import Call
from shardlang.runtime.groups import Group
from shardlang.runtime.lockstep import lowered, move_all
from shardlang.runtime.moves import Sending


def by_member(member: int, members: int, call: Call, message: Tensor) -> Iterator[int]:
    """The elements of every message that one member hands on, round by round."""
    size = message.numel()
    if call.kind == "exchange":
        counts = call.sent if call.sent is not None else [size // members] * members
        yield from (count for other, count in enumerate(counts) if other != member)
        return
    chunk = [size // members + (i < size % members) for i in range(members)]
    for round_ in range(members - 1):
        if call.kind == "all_gather":
            yield size
        else:
            yield chunk[(member - round_) % members]
        if call.kind == "all_reduce":
            yield chunk[(member + 1 - round_) % members]


def busiest(moves: Sequence[lockstep.Move] | Sequence[Sending], xs: Sequence[Tensor]) -> int:
    """Bytes that the busiest device sends when all of them make their move."""
    sent = [0]

    def count(groups: Sequence[Group], calls: Sequence[Call], messages: Sequence[Tensor]) -> object:
        for group, call, message in zip(groups, calls, messages, strict=True):
            elements = sum(by_member(group.index, group.size, call, message))
            sent.append(elements * message.element_size())
        return deliver(groups, calls, messages)

    deliver = lockstep.deliver
    with patch.object(lockstep, "deliver", count):
        move_all(moves, list(xs))
    return max(sent)


def busiest_in(collective: Collective, mesh: Mesh, xs: Sequence[Tensor]) -> int:
    """Bytes that the busiest device sends in a collective; shards by device."""
    return busiest(lowered(collective, mesh), xs)
