"""What a name in `explain SPEC NAME` stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from shardlang.compiler.build import build_graph
from shardlang.grammar.patterns import nearest
from shardlang.ir.graph import ShardGraph, constrain, is_item, is_reshard
from shardlang.ir.leaf import ResultKind
from shardlang.ir.node import info
from shardlang.passes.pipeline import PROPAGATE, run_passes
from shardlang.passes.propagate.flow import Flow
from shardlang.plan import Plan, plan_of
from shardlang.plan.names import Names
from shardlang.plan.values import module_values, value_name

if TYPE_CHECKING:
    from shardlang.compiler.driver import Compiled


class UnknownName(ValueError):
    """A name of nothing; `near` holds those most like it."""

    def __init__(self, name: str, near: list[str]) -> None:
        super().__init__(f"there is no tensor, module or collective `{name}`")
        self.near = near


@dataclass(slots=True)
class Subject:
    """A tensor of the model: its name and kind, and the node that makes it."""

    name: str
    kind: str
    node: fx.Node


class Book:
    """All that can be explained of a compiled spec.

    Attributes:
        propagated: the graph once more, as it is before the rewrite.
    """

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self.plan: Plan = plan_of(compiled)
        self.propagated: ShardGraph = run_passes(
            build_graph(compiled.captured, compiled.statements), PROPAGATE
        )
        self.flow = Flow(self.propagated)
        self.nodes = {node.name: node for node in self.propagated.graph.nodes}
        self.reshards = {n.name: n for n in compiled.program.graph.nodes if is_reshard(n)}
        self.values = self._values()
        by_node = {node: name for name, node in reversed(self.values.items())}
        leaves = {leaf.node: leaf.name for leaf in self.propagated.leaves}
        self.names = Names(leaves, by_node)

    def _values(self) -> dict[str, str]:
        """Names of modules' tensors to the names of their nodes."""
        captured = self.compiled.captured
        found = {name: v.node for name, v in module_values(captured, self.propagated).items()}
        for key, node in captured.values.items():
            found.setdefault(value_name(key), node.name)
        return found

    def tensor(self, name: str) -> Subject | None:
        """The tensor of that name: a leaf, a module's tensor, a result or an op of the graph."""
        for leaf in self.propagated.leaves:
            if name == leaf.name or name in leaf.aliases:
                return Subject(leaf.name, leaf.kind, self.nodes[leaf.node])
        if name in self.values:
            return Subject(name, "value", self._constrained(self.nodes[self.values[name]]))
        for result, node in zip(self.propagated.results, self.propagated.result_nodes, strict=True):
            if result.kind is ResultKind.OUTPUT and result.name == name and node is not None:
                return Subject(name, "output", node)
        node = self.nodes.get(name)
        is_value = node is not None and node.op != "output"
        return Subject(self.names(node), "value", node) if is_value and node is not None else None

    def _constrained(self, node: fx.Node) -> fx.Node:
        """The value as it is stated, if it is."""
        for user in node.users:
            if user.target is constrain and info(user).stated is not None:
                return user
        return node

    def collectives_of(self, name: str) -> list[str]:
        """The reshard nodes in a module, or of that name."""
        if name in self.reshards or any(row.node == name for row in self.plan.collectives):
            return [name]
        inside = [
            row.node
            for row in self.plan.collectives
            if row.node and (row.module == name or row.module.startswith(f"{name}."))
        ]
        return list(dict.fromkeys(inside))

    def is_module(self, name: str) -> bool:
        """Whether a module has that name."""
        return name in self.compiled.captured.modules

    def unknown(self, name: str) -> UnknownName:
        """The error for a name of nothing."""
        known = [leaf.name for leaf in self.propagated.leaves]
        known += [*self.values, *self.compiled.captured.modules, *self.reshards]
        known += [node.name for node in self.propagated.graph.nodes if not is_item(node)]
        return UnknownName(name, nearest(name, known, 3))
