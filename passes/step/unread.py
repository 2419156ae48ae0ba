"""What nothing reads, which a step need not make."""

from __future__ import annotations

from torch import fx

from shardlang.ir.node import info


def drop_unread(graph: fx.Graph) -> None:
    """Drop what nothing reads: all but draws, without which later draws would be others."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and not info(node).random:
            graph.erase_node(node)
