"""Let random ops see their operands in the memory order that they have in the model.

A random op such as dropout draws its numbers in the order in which its operand lies in memory. What
simplification drops, such as `x.transpose(1, 2).contiguous()`, changes no value but may change that
order. Where it does, the operand is copied back into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from shardlang.ir.graph import ShardGraph
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.traced import draw_orders_kept, order_of

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class KeepDrawOrder:
    """Copy the operands of random ops whose memory order is no longer the noted one."""

    name: str = "keep_draw_order"
    establishes: ClassVar[tuple[Invariant, ...]] = (draw_orders_kept,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Copy where the order has changed, and infer all values anew behind."""
        orders = graph.info.draw_orders
        if not any(node.name in orders for node in graph.graph.nodes):
            return graph
        edit = Rewriter(graph.graph)
        for node in graph.graph.nodes:
            if node.op == "call_function":
                order = orders.get(node.name)
                if order is not None and order_of(node) not in (None, order):
                    _copy(edit, node, order)
                edit.infer(node)
        return graph


def _copy(edit: Rewriter, node: fx.Node, order: tuple[int, ...]) -> None:
    operand = node.args[0]
    back = [order.index(dim) for dim in range(len(order))]
    plain = order == tuple(range(len(order)))
    turned = operand if plain else edit.call(aten.permute.default, operand, [*order], like=node)
    kept = torch.contiguous_format
    copied = edit.call(aten.clone.default, turned, memory_format=kept, like=node)
    made = copied if plain else edit.call(aten.permute.default, copied, back, like=node)
    node.args = (made, *node.args[1:])
