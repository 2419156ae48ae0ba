"""The tensors that modules return, under the modules' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import fx

from shardlang.ir.graph import ShardGraph
from shardlang.ir.leaf import ValueKey
from shardlang.ir.node import info, is_ordered, tensor_of
from shardlang.plan.types import Value

if TYPE_CHECKING:
    from shardlang.capture import Captured


def value_name(key: ValueKey) -> str:
    """A value as the language writes it: `model.norm.out`."""
    return ".".join(part for part in key if part)


def module_values(captured: Captured, graph: ShardGraph) -> dict[str, Value]:
    """What the modules of a model return, and the values that the spec speaks of, by name.

    Args:
        graph: what the passes made of it, with the record of the layouts before the rewrite.
    """
    layouts = graph.info.layouts
    ordered = {node.name for node in graph.graph.nodes if is_ordered(node)}
    nodes = {name: node for name, node in _named(captured).items() if node.name in layouts}
    return {
        name: Value(node.name, tensor_of(node).dtype, layouts[node.name], node.name in ordered)
        for name, node in nodes.items()
    }


def _named(captured: Captured) -> dict[str, fx.Node]:
    found = {value_name(key): node for key, node in captured.values.items() if key[1] == "out"}
    marked = {module for module, side, _ in captured.values if side == "out"}
    made = returned(captured.graph)
    lists = _lists(made)
    for module, node in made.items():
        if module not in marked and module not in lists:
            found[f"{module}.out"] = node
    order = {node: index for index, node in enumerate(captured.graph.nodes)}
    deepest_last = sorted(found.items(), key=lambda item: (order[item[1]], -item[0].count(".")))
    return dict(deepest_last)


def returned(graph: fx.Graph) -> dict[str, fx.Node]:
    """The one value of each module that is read outside of it; none where there are several."""
    found: dict[str, dict[fx.Node, None]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(info(node).value, torch.Tensor):
            users = [info(user).module for user in node.users]
            for module in enclosing(info(node).module):
                if any(not _inside(user, module) for user in users):
                    found.setdefault(module, {})[node] = None
    return {module: next(iter(nodes)) for module, nodes in found.items() if len(nodes) == 1}


def _lists(made: Mapping[str, fx.Node]) -> set[str]:
    """The modules that return what a numbered part of them returns, as a list of layers does."""
    parts = (name.rpartition(".") for name in made)
    numbered = ((outer, f"{outer}{dot}{part}") for outer, dot, part in parts if part.isdigit())
    return {outer for outer, part in numbered if made.get(outer) is made[part]}


def enclosing(module: str) -> Iterator[str]:
    """A module and those around it, without the root."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _inside(module: str, outer: str) -> bool:
    return module == outer or module.startswith(outer + ".")
