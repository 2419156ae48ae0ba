"""The bytes that one way to split an op moves around it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from shardlang.cost.paths import reshard_bytes
from shardlang.ir.graph import result_layout
from shardlang.ir.layout import Layout
from shardlang.ir.node import info, tensor_of, tensors_of
from shardlang.ir.rule import Sharding


def split_bytes(node: fx.Node, operands: Sequence[fx.Node], sharding: Sharding) -> float:
    """Bytes that an op would move if it were split so: its operands into place, its result reduced.

    The operands are taken as they lie now, for this op alone; a partial result becomes whole by an
    all-reduce. Gradients are counted as `expected_bytes` counts them. Infinite where an operand
    cannot be brought into place. Nothing in the graph is changed.

    Args:
        node: an op call.
        operands: its tensor operands, in schema order.
        sharding: how it would be split.
    """
    into_place = sum(
        change_bytes(result_layout(operand), sharding.operand(index), operand)
        for index, operand in enumerate(operands)
    )
    return into_place + result_bytes(node, sharding)


def result_bytes(node: fx.Node, sharding: Sharding) -> float:
    """Bytes that reduce the partial results which a sharding leaves."""
    total = 0.0
    for index, tensor in enumerate(tensors_of(node)):
        layout = sharding.result(index)
        if layout.partial:
            goal, diff = Layout(layout.dims), info(node).differentiable
            total += reshard_bytes(layout, goal, tensor.dtype.itemsize, diff)
    return total


def change_bytes(have: Layout, goal: Layout, value: fx.Node) -> float:
    """Bytes that bring a value from one layout into another, and its gradient, if any, back."""
    return reshard_bytes(have, goal, tensor_of(value).dtype.itemsize, info(value).differentiable)
