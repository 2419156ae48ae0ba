"""record_layouts: remember how every value lies before the rewrite.

The rewrite replaces ops and drops constraints; plans and explanations still speak of the values
that the model has. `notes["layouts"]` maps the name of every node to its layout, that of a value
with a statement to the stated one; `notes["stated"]` maps it to the statement's place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from shardlang.ir.graph import ShardGraph, Stated, constrain, home
from shardlang.ir.layout import Layout


@dataclass(frozen=True, slots=True)
class RecordLayouts:
    """Write the layouts of all values into the graph's notes."""

    name: str = "record_layouts"

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Record all layouts."""
        layouts: dict[str, Layout] = {}
        places: dict[str, str] = {}
        for node in graph.graph.nodes:
            if node.op == "output" or not isinstance(node.meta["val"], torch.Tensor):
                continue
            layouts[node.name] = home(node)
            stated = node.meta.get("stated")
            if isinstance(stated, Stated):
                value = _value(node)
                layouts[value.name] = layouts[node.name]
                places[value.name] = stated.place
        graph.notes["layouts"], graph.notes["stated"] = layouts, places
        return graph


def _value(node: fx.Node) -> fx.Node:
    """The value that a statement is about."""
    source = node.args[0] if node.target is constrain else node
    assert isinstance(source, fx.Node)
    return source
