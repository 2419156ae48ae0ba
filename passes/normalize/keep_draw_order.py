"""Let random ops see their operands in the memory order that they have in the model.

A random op such as dropout draws its numbers in the order in which its operand lies in memory. What
simplification drops, such as `x.transpose(1, 2).contiguous()`, changes no value but may change that
order. Where it does, the operand is copied back into it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from shardlang.ir.node import info
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.normalize.fx_edit import has_argument
from shardlang.rules.local_order import dense_steps
from shardlang.rules.registry import is_random

aten = torch.ops.aten
Orders = Mapping[fx.Node, tuple[int, ...]]


def draw_orders(graph: fx.Graph) -> dict[fx.Node, tuple[int, ...]]:
    """The memory order of what each random op draws for: its dims, those of the longest step first.

    Ops that draw for a shape alone, or name the steps themselves, are left out.
    """
    found: dict[fx.Node, tuple[int, ...]] = {}
    for node in graph.nodes:
        order = _order(_operand(node)) if is_random(node) else None
        if order is not None:
            found[node] = order
    return found


def keep_draw_order(graph: fx.Graph, orders: Orders) -> None:
    """Copy the operands of random ops whose memory order is no longer the given one."""
    left = [node for node in graph.nodes if node in orders]
    if not left:
        return
    edit = Rewriter(graph)
    for node in graph.nodes:
        if node.op == "call_function":
            if node in orders and _order(_operand(node)) not in (None, orders[node]):
                _copy(edit, node, orders[node])
            edit.infer(node)


def _copy(edit: Rewriter, node: fx.Node, order: tuple[int, ...]) -> None:
    operand = node.args[0]
    back = [order.index(dim) for dim in range(len(order))]
    plain = order == tuple(range(len(order)))
    turned = operand if plain else edit.call(aten.permute.default, operand, [*order], like=node)
    kept = torch.contiguous_format
    copied = edit.call(aten.clone.default, turned, memory_format=kept, like=node)
    made = copied if plain else edit.call(aten.permute.default, copied, back, like=node)
    node.args = (made, *node.args[1:])


def _operand(node: fx.Node) -> Tensor | None:
    if has_argument(node, "steps"):
        return None
    first = node.args[0] if node.args else None
    value = info(first).value if isinstance(first, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def _order(value: Tensor | None) -> tuple[int, ...] | None:
    """The dims by descending step in memory, gaps and overlaps left out; None below two dims.

    Dims of one element, whose step says nothing, come first.
    """
    if value is None or value.dim() < 2:
        return None
    sizes, steps = value.shape, dense_steps(value)
    known = [-step if size > 1 else -math.inf for size, step in zip(sizes, steps, strict=True)]
    return tuple(sorted(range(value.dim()), key=known.__getitem__))
