"""Questions about nodes of a traced graph: their op, arguments and gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from shardlang.ir.compat import tree_leaves
from shardlang.ir.leaf import LeafKind
from shardlang.ir.node import info
from shardlang.ir.values import sources

_DETACH = torch.ops.aten.detach.default


def is_op(node: fx.Node, targets: Iterable[object]) -> bool:
    """Whether a node calls one of the operators, in any overload."""
    packet = getattr(node.target, "overloadpacket", None)
    return node.op == "call_function" and (packet in targets or node.target in targets)


def has_argument(node: fx.Node, name: str) -> bool:
    """Whether the called operator's schema has an argument of that name."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(a.name == name for a in schema.arguments)


def gradient_carriers(graph: fx.Graph) -> set[fx.Node]:
    """Nodes through which a gradient may flow to a trainable parameter or a float input."""
    carriers: set[fx.Node] = set()
    for node in graph.nodes:
        if not may_have_gradient(node):
            continue
        passes = node.target is not _DETACH and any(n in carriers for n in node.all_input_nodes)
        if passes or _is_source(node):
            carriers.add(node)
    return carriers


def carries_gradient(node: fx.Node) -> bool:
    """Whether a gradient may flow from this node to a trainable parameter or a float input."""
    return any(_is_source(one) for one in sources(node.graph, [node], _passes_gradient))


def _passes_gradient(node: fx.Node) -> bool:
    """Whether a gradient may flow through the node."""
    cut = node.target is _DETACH or (node.op == "call_function" and info(node).no_grad)
    return not cut and may_have_gradient(node)


def _is_source(node: fx.Node) -> bool:
    """Whether gradients end in this placeholder."""
    leaf = info(node).leaf
    return leaf is not None and (leaf.trainable or leaf.kind is LeafKind.INPUT)


def may_have_gradient(node: fx.Node) -> bool:
    """Whether some tensor of the node has a type that gradients have."""
    values = tree_leaves(info(node).value)
    return any(
        isinstance(v, torch.Tensor) and (v.is_floating_point() or v.is_complex()) for v in values
    )
