"""The calls of the transport in one process, for all members of a group at once.

What a member receives follows from the calls and messages of all. Calls that would hang, crash or
mix up data between processes are faults here: kinds, dtypes and sizes that do not agree.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shardlang.ir.collective import ReduceOp
from shardlang.runtime.communication import Call

_COMBINE: dict[ReduceOp, Callable[..., Tensor]] = {
    ReduceOp.SUM: torch.add,
    ReduceOp.MAX: torch.maximum,
    ReduceOp.MIN: torch.minimum,
}


class CallFault(RuntimeError):
    """The members of a group make calls that do not fit together."""


class Communicator:
    """One call of a whole group: the members' calls and messages, in the group's order."""

    def __init__(self, calls: Sequence[Call], messages: Sequence[Tensor]) -> None:
        self._calls, self._messages = calls, messages
        _check(calls, messages)

    def received(self, member: int) -> Tensor:
        """What a member gets: a tensor of its own."""
        kind = self._calls[0].kind
        if kind == "all_reduce":
            return self._total.clone()
        if kind == "all_gather":
            return torch.cat([message.reshape(-1) for message in self._messages])
        if kind == "reduce_scatter":
            return self._total.reshape(len(self._calls), -1)[member].clone()
        return torch.cat([shards[member] for shards in self._sent])

    @functools.cached_property
    def _total(self) -> Tensor:
        return functools.reduce(_COMBINE[self._calls[0].op], self._messages)

    @functools.cached_property
    def _sent(self) -> list[Sequence[Tensor]]:
        """What each member sends to each, of an exchange."""
        sizes = [call.sent or _shares(m, len(self._calls))
                 for call, m in zip(self._calls, self._messages, strict=True)]  # fmt: skip
        pairs = zip(self._messages, sizes, strict=True)
        return [message.split_with_sizes(counts) for message, counts in pairs]


def _check(calls: Sequence[Call], messages: Sequence[Tensor]) -> None:
    """Raise a fault unless all members make one and the same call."""
    first = calls[0]
    for call in calls:
        if (call.kind, call.op) != (first.kind, first.op):
            raise CallFault(f"a member calls {call.kind} {call.op} in {first.kind} {first.op}")
    if len({message.dtype for message in messages}) > 1:
        raise CallFault(f"the messages of a {first.kind} differ in dtype")
    if first.kind == "exchange" and any(call.sent is not None for call in calls):
        _check_counts(calls, messages)
    elif len({message.numel() for message in messages}) > 1:
        raise CallFault(f"the messages of a {first.kind} differ in size")
    elif first.kind in ("exchange", "reduce_scatter") and messages[0].numel() % len(calls):
        raise CallFault(f"{messages[0].numel()} elements are not equal shares of {len(calls)}")


def _check_counts(calls: Sequence[Call], messages: Sequence[Tensor]) -> None:
    """Raise a fault unless each member expects what each sends."""
    for i, (call, message) in enumerate(zip(calls, messages, strict=True)):
        if call.sent is None or sum(call.sent) != message.numel():
            raise CallFault(f"member {i} sends {message.numel()} elements, announced {call.sent}")
        expected = [(other.received or [])[i] for other in calls if other.received is not None]
        if expected != call.sent:
            raise CallFault(f"member {i} sends {call.sent} elements, expected are {expected}")


def _shares(message: Tensor, members: int) -> list[int]:
    return [message.numel() // members] * members
