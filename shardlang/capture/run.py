"""The reference executor: a captured graph, node by node, on ordinary tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx
from torch.fx.node import Argument

from shardlang.capture.types import Captured
from shardlang.ir.leaf import Leaf
from shardlang.ir.node import tensor_of


def run_graph(
    captured: Captured, leaf_values: Mapping[str, torch.Tensor], graph: fx.Graph | None = None
) -> list[torch.Tensor]:
    """The values of the results, in order. Autograd works through the run.

    `leaf_values` maps leaf names to tensors; constants are taken from `captured` where missing.
    `graph` is another form of the captured graph with the same leaves, such as its float64 one.
    """
    graph = captured.graph if graph is None else graph
    leaves = {leaf.node: leaf for leaf in captured.leaves}
    last_use = _last_uses(graph)
    env: dict[fx.Node, Argument] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            env[node] = _leaf_value(captured, leaf_values, leaves[node.name], node)
        elif node.op == "output":
            return list(fx.map_arg(node.args[0], lambda n: env[n]))
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
            env[node] = node.target(*args, **kwargs)
        for operand in last_use[node]:
            env.pop(operand, None)
    raise AssertionError("a graph ends in an output node")


def _leaf_value(
    captured: Captured, values: Mapping[str, torch.Tensor], leaf: Leaf, node: fx.Node
) -> torch.Tensor:
    """The value of one placeholder, in the dtype of the graph where it is cast, or a constant."""
    if leaf.name in values:
        given = values[leaf.name]
        return given if leaf.computes is None else given.to(tensor_of(node).dtype)
    return captured.constants[leaf.name].to(tensor_of(node).dtype)


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For every node, the operands that no later node uses."""
    ends: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        ends[node] = [operand for operand in node.all_input_nodes if operand not in seen]
        seen.update(node.all_input_nodes)
    return ends
