"""All-reduces that put the sum into the memory of what they add up."""

from __future__ import annotations

from torch import fx

from shardlang.ir.collective import Kind
from shardlang.ir.node import info
from shardlang.ir.step import arrives, collectives_of, is_bucket, is_collective
from shardlang.ir.views import gives_view


def reduces_in_place(node: fx.Node) -> bool:
    """Whether a collective is an all-reduce of one value that nothing else ever reads.

    The value lies in memory of its own, and is of the same half of the step: what the forward has
    made, a graph that is retained reads again.
    """
    if not is_collective(node) or is_bucket(node):
        return False
    ((operand, collective),) = collectives_of(node)
    if collective.kind is not Kind.ALL_REDUCE or not collective.sends:
        return False
    source = memory_of(operand)
    return source is not None and info(source).backward is info(node).backward


def memory_of(operand: fx.Node) -> fx.Node | None:
    """The value in whose memory an operand lies; None if anything but a view leads there.

    None too if others read it, or if its memory may be that of other values.
    """
    while len(operand.users) == 1 and gives_view(operand.target):
        source = operand.args[0]
        assert isinstance(source, fx.Node), f"{operand} is a view of no value"
        operand = source
    return operand if len(operand.users) == 1 and arrives(operand) else None
