"""The bytes of a change of layout, forward and backward."""

from __future__ import annotations

from shardlang.cost.ring import sent_bytes
from shardlang.ir.steps import Move, Step


def forward_bytes(step: Step, itemsize: int) -> int:
    """Bytes that the busiest device sends in one forward call."""
    return sent_bytes(step.forward, step.axes, step.src, step.dst, itemsize)


def backward_bytes(step: Step, itemsize: int) -> int:
    """Bytes that the busiest device sends in one backward call.

    The gradient goes from the layout of the result to that of the operand.
    """
    return sent_bytes(step.backward, step.backward_axes, step.dst, step.src, itemsize)


def expected_bytes(step: Step, itemsize: int, diff: bool) -> float:
    """Bytes of a step forward and, where a gradient flows, backward, before labels are known.

    Which whole values are invariant and which replicated is decided after the layouts. Until then a
    gather is taken to be replicated, so that its gradient is scattered, and every second slice to
    be of an invariant value, so that its gradient is gathered.
    """
    sent = forward_bytes(step, itemsize)
    if not diff:
        return sent
    if step.kind == "all_gather":
        return sent + sent_bytes(Move.REDUCE_SCATTER, step.axes, step.dst, step.src, itemsize)
    if step.kind == "slice":
        return sent + 0.5 * sent_bytes(Move.ALL_GATHER, step.axes, step.dst, step.src, itemsize)
    return sent + backward_bytes(step, itemsize)
