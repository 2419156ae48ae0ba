"""localize: from global to local arguments, and from the graph to the program every device runs.

Sizes and offsets become functions of the device coordinate, so one text serves all devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from shardlang.ir.graph import ShardGraph, constrain, is_item, is_step, sharding_of
from shardlang.ir.program import LeafPlacement, LocalProgram, ResultPlacement
from shardlang.rules.call import Call
from shardlang.rules.registry import find


@dataclass(frozen=True, slots=True)
class Localize:
    """Rewrite every op's arguments to what a device's piece needs."""

    name: str = "localize"

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Localize all ops and drop the constraints, which are met by now."""
        for node in list(graph.graph.nodes):
            if node.op != "call_function" or is_item(node) or is_step(node):
                continue
            if node.target is constrain:
                drop(node)
            else:
                localize_node(node)
        return graph


def drop(node: fx.Node) -> None:
    """Remove an identity."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def localize_node(node: fx.Node) -> None:
    """Put local arguments into one op."""
    sharding = sharding_of(node)
    node.meta["random"] = sharding.rule.random
    declared = find(node.target)
    if declared is None or declared.localize is None or not sharding.axes():
        return
    node.target, node.args, node.kwargs = declared.localize(Call(node), sharding)


def to_program(graph: ShardGraph) -> LocalProgram:
    """The program, once all passes have run."""
    leaves = tuple(
        LeafPlacement(
            leaf.name, leaf.kind, leaf.node.name, leaf.dtype, leaf.trainable,
            leaf.node.meta["layout"], leaf.aliases,
        )
        for leaf in graph.leaves
    )  # fmt: skip
    results = tuple(
        ResultPlacement(result.name, result.kind, node.meta["val"].dtype, node.meta["layout"])
        for result, node in zip(graph.results, graph.result_nodes, strict=True)
        if node is not None
    )
    return LocalProgram(
        graph.mesh, graph.graph, leaves, results, graph.loss, graph.data_axes, graph.notes
    )
