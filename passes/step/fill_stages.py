"""The stages of what the passes have put between the ops of stages: changes of layout above all."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from shardlang.ir.node import info, set_info


def fill_stages(graph: fx.Graph) -> None:
    """Give every op without a stage that of what it reads, or else that of what reads it.

    Leaves other than parameters have none: they are at hand in every stage. In a model that is not
    split into stages nothing has one.
    """
    if all(info(node).stage is None for node in graph.nodes):
        return
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    for node in nodes:
        before = [s for x in node.all_input_nodes if (s := info(x).stage) is not None]
        if info(node).stage is None and before:
            _set(node, max(before))
    for node in reversed(nodes):
        after = [s for x in node.users if (s := info(x).stage) is not None]
        if info(node).stage is None:
            _set(node, min(after, default=0))


def _set(node: fx.Node, stage: int) -> None:
    set_info(node, replace(info(node), stage=stage))
