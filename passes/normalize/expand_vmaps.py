"""Write what runs under `torch.vmap` out as operators on whole batches.

Export records the entry and the exit of a vmap and, between them, operators on one element. Running
that stretch again, with PyTorch's own batching rules, gives the operators that it amounts to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import Argument

from shardlang.ir.graph import ShardGraph
from shardlang.ir.node import info
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.traced import vmaps_expanded

_ENTRY, _EXIT = "_vmap_increment_nesting", "_vmap_decrement_nesting"


@dataclass(frozen=True, slots=True)
class ExpandVmaps:
    """Write what runs under `torch.vmap` out as operators on whole batches."""

    name: str = "expand_vmaps"
    establishes: ClassVar[tuple[Invariant, ...]] = (vmaps_expanded,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Replace every vmap, nested ones with it."""
        expand_vmaps(graph.graph)
        return graph


def expand_vmaps(graph: fx.Graph) -> None:
    """Replace every vmap in `graph`, nested ones with it."""
    for nodes in _stretches(graph):
        _expand(graph, nodes)


def _stretches(graph: fx.Graph) -> list[list[fx.Node]]:
    """The nodes from each outermost entry to its exit."""
    found: list[list[fx.Node]] = []
    depth = 0
    for node in graph.nodes:
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if name == _ENTRY:
            if depth == 0:
                found.append([])
            depth += 1
        if depth:
            found[-1].append(node)
        depth -= name == _EXIT
    return found


def _expand(graph: fx.Graph, nodes: Sequence[fx.Node]) -> None:
    inside = set(nodes)
    read = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
    made = [node for node in nodes if any(user not in inside for user in node.users)]
    edit = Rewriter(graph)
    first = nodes[0]
    with edit.fake_mode:
        traced = make_fx(_function(nodes, list(read), made))(*(info(n).value for n in read))
    env = dict(zip(traced.graph.find_nodes(op="placeholder"), read, strict=True))
    for node in traced.graph.nodes:
        if node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = edit.call(node.target, *args, like=first, **kwargs)
    results = traced.graph.output_node().args[0]
    assert isinstance(results, (list, tuple))
    for old, new in zip(made, results, strict=True):
        edit.redirect(old, env[new])
    for node in reversed(nodes):
        edit.remove(node)


def _function(
    nodes: Sequence[fx.Node], read: Sequence[fx.Node], made: Sequence[fx.Node]
) -> Callable[..., list[Argument]]:
    """What the nodes compute, from the values that they read to those that others use."""

    def function(*values: Argument) -> list[Argument]:
        env = dict(zip(read, values, strict=True))
        for node in nodes:
            assert callable(node.target)
            args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*args, **kwargs)
        return [env[node] for node in made]

    return function
