"""Note in which order in memory random ops draw, before that of their operands may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shardlang.ir.graph import ShardGraph
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.traced import draw_orders_noted, order_of
from shardlang.rules.registry import is_random


@dataclass(frozen=True, slots=True)
class NoteDrawOrders:
    """Note the order in memory of what each random op draws for, before copies are dropped."""

    name: str = "note_draw_orders"
    establishes: ClassVar[tuple[Invariant, ...]] = (draw_orders_noted,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Note the orders by the names of the ops."""
        for node in graph.graph.nodes:
            order = order_of(node) if is_random(node) else None
            if order is not None:
                graph.info.draw_orders[node.name] = order
        return graph
