"""The collectives that our calls of a process group make (`shardlang.runtime.transport`)."""

from __future__ import annotations

from torch import Tensor


def kind_of(op: str, args: tuple[object, ...]) -> str:
    """The collective of a call of gloo's, as the dispatcher sees it; of a `send` a transfer.

    An all-to-all of equal shares is a reduce-scatter. Where two ranks exchange what they have, an
    all-gather fills a tensor of which its own half is sent, a reduce-scatter sends the other half
    of its message, and an all-reduce all of it.
    """
    if op == "send":
        return "transfer"
    if op in ("allreduce_", "_allgather_base_"):
        return "all_reduce" if op == "allreduce_" else "all_gather"
    assert op == "alltoall_base_", op
    out, message, _, shares = args[:4]
    assert isinstance(out, Tensor) and isinstance(message, Tensor)
    whole = message.untyped_storage()
    if out.untyped_storage().data_ptr() == whole.data_ptr():
        return "all_gather"
    halves = not shares or whole.nbytes() == 2 * message.nbytes
    return "reduce_scatter" if halves else "all_reduce"
