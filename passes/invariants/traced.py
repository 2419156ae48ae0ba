"""What holds of a traced graph between the passes of normalization."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, fx

from shardlang.ir.compat import HigherOrderOperator, OpOverload
from shardlang.ir.node import info, tensors_of
from shardlang.passes.invariants.invariant import View, invariant
from shardlang.rules.call import Call
from shardlang.rules.local_order import dense_steps
from shardlang.rules.registry import is_random

_CHECKS = ("aten::_assert", "aten::_functional_assert", "aten::sym_constrain_range")
_VMAP = ("_vmap_increment_nesting", "_vmap_decrement_nesting", "_add_batch_dim")
_DRAWS_IN_PLACE = ("aten::bernoulli_", "aten::normal_")
_SORTED_ROWS = ("aten::_grouped_mm", "transformers::grouped_mm_fallback")
_SPELLED_OTHERWISE = tuple(
    f"aten::{name}"
    for name in (
        "_unsafe_view", "view_as", "reshape_as", "flatten", "unflatten", "alias", "contiguous",
        "lift_fresh", "_to_copy", "type_as", "expand_as", "detach_", "empty", "empty_like",
        "new_ones", "new_zeros", "new_full", "new_empty",
    )
)  # fmt: skip


def name_of(node: fx.Node) -> str:
    """The name of the op that a node calls, `aten::linear`; empty for other calls."""
    return node.target._schema.name if isinstance(node.target, OpOverload) else ""


@invariant
def values_known(view: View) -> Iterator[str]:
    """The graph is well formed, and every result is returned by its node."""
    view.graph.graph.lint()
    if len(view.graph.result_nodes) != len(view.graph.results):
        yield f"{len(view.graph.results)} results have {len(view.graph.result_nodes)} values"


@invariant
def regions_inlined(view: View) -> Iterator[str]:
    """No call has a graph of its own: no region, no branch and no loop."""
    for node in view.nodes:
        if node.op == "get_attr" or isinstance(node.target, HigherOrderOperator):
            yield f"{node} is a region, or the graph of one"


@invariant
def checks_dropped(view: View) -> Iterator[str]:
    """No check is left, and no shape depends on the values of a tensor."""
    for node in view.nodes:
        if name_of(node).startswith(_CHECKS) and not node.users:
            yield f"{node} is a check"
        sizes = (size for value in tensors_of(node) for size in value.shape)
        if not all(isinstance(size, int) for size in sizes):
            yield f"the shape of {node} depends on the values of a tensor"


@invariant
def vmaps_expanded(view: View) -> Iterator[str]:
    """No call enters or leaves a `torch.vmap`."""
    for node in view.nodes:
        if node.op == "call_function" and getattr(node.target, "__name__", "") in _VMAP:
            yield f"{node} belongs to a vmap"


@invariant
def draws_plain(view: View) -> Iterator[str]:
    """No call names a generator, and none draws into its operand."""
    for node in view.ops:
        if "generator" in node.kwargs:
            yield f"{node} names a generator"
        if name_of(node) in _DRAWS_IN_PLACE:
            yield f"{node} draws into its operand"


@invariant
def nothing_written(view: View) -> Iterator[str]:
    """No call writes one of its operands."""
    for node in view.ops:
        mutable = isinstance(node.target, OpOverload) and node.target._schema.is_mutable
        if mutable and name_of(node) != "aten::detach_":
            yield f"{node} writes an operand"


@invariant
def randomness_exposed(view: View) -> Iterator[str]:
    """No attention draws inside: its dropout is an op of its own."""
    for node in view.ops:
        attends = name_of(node) == "aten::scaled_dot_product_attention"
        if attends and Call(node).number("dropout_p") > 0.0:
            yield f"{node} draws inside"


@invariant
def groups_exposed(view: View) -> Iterator[str]:
    """No product takes rows that are sorted by group: the group of each row is an operand."""
    for node in view.ops:
        shapes = [len(tensors_of(n)[0].shape) for n in node.all_input_nodes if tensors_of(n)]
        if name_of(node) in _SORTED_ROWS and shapes == [2, 3, 1]:
            yield f"{node} takes sorted rows"


@invariant
def draw_orders_noted(view: View) -> Iterator[str]:
    """The order in memory of what a random op draws for is noted."""
    for node in view.ops:
        noted = node.name in view.graph.info.draw_orders
        if is_random(node) and order_of(node) is not None and not noted:
            yield f"the order in which {node} draws is not noted"


@invariant
def spelled_one_way(view: View) -> Iterator[str]:
    """Reshapes, casts and factories have one spelling, and no device but the CPU is named."""
    for node in view.ops:
        if name_of(node) in _SPELLED_OTHERWISE:
            yield f"{node} is spelled `{name_of(node)}`"
        device = node.kwargs.get("device")
        if isinstance(device, torch.device) and device.type != "cpu":
            yield f"{node} names the device {device}"


@invariant
def draw_orders_kept(view: View) -> Iterator[str]:
    """A random op draws for an operand that lies in memory in the order of the model."""
    orders = view.graph.info.draw_orders
    for node in view.ops:
        if node.name in orders and order_of(node) not in (None, orders[node.name]):
            yield f"{node} draws in the order {order_of(node)}, not {orders[node.name]}"


def order_of(node: fx.Node) -> tuple[int, ...] | None:
    """The dims of what an op draws for by descending step in memory, gaps and overlaps left out.

    Dims of one element, whose step says nothing, come first. None below two dims, and for an op
    that draws for a shape alone or names the steps itself.
    """
    value = _operand(node)
    if value is None or value.dim() < 2:
        return None
    sizes, steps = value.shape, dense_steps(value)
    known = [-step if size > 1 else -math.inf for size, step in zip(sizes, steps, strict=True)]
    return tuple(sorted(range(value.dim()), key=known.__getitem__))


def _operand(node: fx.Node) -> Tensor | None:
    schema = node.target._schema if isinstance(node.target, OpOverload) else None
    if schema is not None and any(argument.name == "steps" for argument in schema.arguments):
        return None
    first = node.args[0] if node.args else None
    value = info(first).value if isinstance(first, fx.Node) else None
    return value if isinstance(value, Tensor) else None
