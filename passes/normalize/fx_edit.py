"""Small edits on an fx graph that keep every node's meta complete."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from shardlang.ir.compat import FakeTensorMode, OpOverload, detect_fake_mode, tree_leaves

_DETACH = torch.ops.aten.detach.default
KEPT_META = ("module", "source", "no_grad")


class Editor:
    """Adds nodes to a graph; their `val` is inferred, their origin is that of a model node."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.fake_mode = graph_fake_mode(graph)

    def call(self, target: Any, *args: Any, like: fx.Node, **kwargs: Any) -> fx.Node:
        """Insert a call before `like`, with the module and source of `like`."""
        with self.graph.inserting_before(like):
            node = self.graph.call_function(target, args, kwargs)
        for key in KEPT_META:
            if key in like.meta:
                node.meta[key] = like.meta[key]
        self.infer(node)
        return node

    def infer(self, node: fx.Node) -> None:
        """Set `node.meta["val"]` from its operands' values."""
        node.meta["val"] = self.run(node.target, node.args, node.kwargs)

    def run(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The fake result of a call whose operands may be nodes."""
        args, kwargs = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with self.fake_mode, torch.no_grad():
            return target(*args, **kwargs)

    def replace(self, node: fx.Node, by: fx.Node) -> None:
        """Let all users of `node` use `by`, and remove `node`."""
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)


def graph_fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """The fake mode of the graph's values, or a new one if it has none."""
    vals = [n.meta["val"] for n in graph.nodes if "val" in n.meta]
    mode = detect_fake_mode(tree_leaves(vals))
    return mode if isinstance(mode, FakeTensorMode) else FakeTensorMode()


def val(node: fx.Node) -> torch.Tensor:
    """The fake tensor of a node that is one tensor."""
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor), f"{node} is not a tensor"
    return value


def is_op(node: fx.Node, targets: Iterable[Any]) -> bool:
    """Whether a node calls one of the operators, in any overload."""
    packet = getattr(node.target, "overloadpacket", None)
    return node.op == "call_function" and (packet in targets or node.target in targets)


def argument(node: fx.Node, name: str) -> Any:
    """The argument of an aten call by its schema name, its default if it is not given."""
    assert isinstance(node.target, OpOverload)
    for i, spec in enumerate(node.target._schema.arguments):
        if spec.name == name:
            given = node.args[i] if i < len(node.args) else node.kwargs.get(name)
            missing = i >= len(node.args) and name not in node.kwargs
            return spec.default_value if missing else given
    raise KeyError(name)


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
    pending, seen = [node], set[fx.Node]()
    while pending:
        node = pending.pop()
        cut = node.target is _DETACH or (node.op == "call_function" and node.meta.get("no_grad"))
        if node in seen or cut or not may_have_gradient(node):
            continue
        seen.add(node)
        if _is_source(node):
            return True
        pending.extend(node.all_input_nodes)
    return False


def _is_source(node: fx.Node) -> bool:
    """Whether gradients end in this placeholder."""
    wanted = node.meta.get("trainable", False) or node.meta.get("kind") == "input"
    return node.op == "placeholder" and wanted


def may_have_gradient(node: fx.Node) -> bool:
    """Whether some tensor of the node has a type that gradients have."""
    values = tree_leaves(node.meta.get("val"))
    return any(
        isinstance(v, torch.Tensor) and (v.is_floating_point() or v.is_complex()) for v in values
    )
