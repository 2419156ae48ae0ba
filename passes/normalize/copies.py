"""What only copies its operand, and what does not even that."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator

import torch
from torch import fx

from shardlang.ir.node import tensor_of
from shardlang.ir.views import gives_view
from shardlang.passes.normalize.fx_edit import is_op
from shardlang.rules.call import Call

aten = torch.ops.aten

DROPOUTS = (aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout)


def needed_copies(graph: fx.Graph, written: Collection[str]) -> set[fx.Node]:
    """The copies of what the call writes at its end: the backward may need what was there before.

    Args:
        written: the names of the placeholders that it writes.
    """
    return {node for node in graph.nodes if is_copy(node) and _copies_one_of(node, written)}


def _copies_one_of(copy: fx.Node, names: Collection[str]) -> bool:
    """Whether it copies one of these placeholders, and no other copy of it."""
    *between, base = list(_memory_of(copy))[1:]
    return base.op == "placeholder" and base.name in names and not any(map(is_copy, between))


def _memory_of(node: fx.Node) -> Iterator[fx.Node]:
    """A value, what it is a view or a copy of, and so on."""
    yield node
    while is_copy(node) or _gives_operand(node):
        operand = node.args[0]
        assert isinstance(operand, fx.Node), f"{node} is a view of no value"
        node = operand
        yield node


def _gives_operand(node: fx.Node) -> bool:
    """Whether the model gets its operand again, or a view of it."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if is_op(node, DROPOUTS):
        return is_off(node)
    return node.target is operator.getitem or gives_view(node.target)


def is_copy(node: fx.Node) -> bool:
    """Whether a call gives the values of its operand, and nothing else, in memory of their own."""
    if is_op(node, (aten.clone, aten.lift_fresh_copy)):
        return True
    if is_op(node, (aten._to_copy,)) or _asks_for_a_copy(node):
        return same_type(node)
    if is_op(node, (aten.contiguous,)):
        order = node.kwargs.get("memory_format", torch.contiguous_format)
        assert isinstance(order, torch.memory_format)
        return not tensor_of(node.all_input_nodes[0]).is_contiguous(memory_format=order)
    return is_op(node, (aten.add, aten.sub, aten.mul, aten.div)) and is_neutral(node)


def _asks_for_a_copy(node: fx.Node) -> bool:
    return is_op(node, (aten.to,)) and bool(Call(node)["copy"])


def same_type(node: fx.Node) -> bool:
    """Whether a cast leaves the type."""
    return tensor_of(node).dtype == tensor_of(node.all_input_nodes[0]).dtype


def is_off(dropout: fx.Node) -> bool:
    """Whether a dropout drops nothing."""
    call = Call(dropout)
    return call.number("p") == 0.0 or not call.flag("train")


def is_neutral(node: fx.Node) -> bool:
    """Whether a product is with one, or a sum, of integers, with zero."""
    operand, other = node.args[0], node.args[1]
    if not isinstance(operand, fx.Node) or isinstance(other, (fx.Node, bool)):
        return False
    if node.kwargs.get("rounding_mode") is not None:
        return False
    neutral = 1 if is_op(node, [aten.mul, aten.div]) else 0
    exact = neutral == 1 or not tensor_of(operand).is_floating_point()
    same = bool(other == neutral)
    return exact and same and tensor_of(operand).dtype == tensor_of(node).dtype
