"""record_layouts: remember how every value lies before the rewrite.

The rewrite replaces ops and drops constraints; plans and explanations still speak of the values
that the model has. `info.layouts` maps the name of every node to its layout, that of a value with a
statement to the stated one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from shardlang.ir.graph import ShardGraph, constrain, result_layout
from shardlang.ir.layout import Layout
from shardlang.ir.node import info
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.shardings import layouts_recorded


@dataclass(frozen=True, slots=True)
class RecordLayouts:
    """Write the layouts of all values into the graph's record."""

    name: str = "record_layouts"
    establishes: ClassVar[tuple[Invariant, ...]] = (layouts_recorded,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Record all layouts."""
        layouts: dict[str, Layout] = {}
        for node in graph.graph.nodes:
            if node.op == "output" or not isinstance(info(node).value, torch.Tensor):
                continue
            layouts[node.name] = result_layout(node)
            if info(node).stated is not None:
                layouts[_value(node).name] = layouts[node.name]
        graph.info.layouts = layouts
        return graph


def _value(node: fx.Node) -> fx.Node:
    """The value that a statement is about."""
    source = node.args[0] if node.target is constrain else node
    assert isinstance(source, fx.Node)
    return source
