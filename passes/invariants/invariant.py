"""Invariants by name, the verifier that gathers them, and the view of a graph that checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from torch import fx

from shardlang.ir.graph import ShardGraph, is_item, is_reshard, result_layout, sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.node import info, layout_of
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call


class InvariantError(AssertionError):
    """A pass broke an invariant of the graph: a fault of ours, with the pass and the node named."""


class View:
    """A graph between two passes; what several checks read is computed once."""

    def __init__(self, graph: ShardGraph) -> None:
        self.graph = graph
        self.nodes: list[fx.Node] = list(graph.graph.nodes)
        self._layouts: dict[fx.Node, Layout] = {}

    @cached_property
    def ops(self) -> list[fx.Node]:
        """The op calls: neither leaves nor reshards, nor what picks one of several results."""
        calls = (node for node in self.nodes if node.op == "call_function")
        return [node for node in calls if not is_item(node) and not is_reshard(node)]

    @cached_property
    def reshards(self) -> list[fx.Node]:
        """The reshards, buckets of several among them."""
        return [node for node in self.nodes if is_reshard(node)]

    @cached_property
    def operands(self) -> dict[fx.Node, list[fx.Node]]:
        """The tensor operands of every op call."""
        return {node: Call(node).operands for node in self.ops}

    @cached_property
    def sharded(self) -> list[tuple[fx.Node, Sharding]]:
        """Leaves and op calls with their shardings."""
        wanted = [node for node, _ in self.graph.placeholders()] + self.ops
        return [(node, sharding_of(node)) for node in wanted if info(node).sharding is not None]

    def made(self, node: fx.Node) -> Layout:
        """The layout in which a value comes out of the op that made it."""
        found = self._layouts.get(node)
        if found is None:
            bucketed = is_item(node) and is_reshard(node.all_input_nodes[0])
            found = self._layouts[node] = layout_of(node) if bucketed else result_layout(node)
        return found


Check = Callable[[View], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Invariant:
    """What holds of a graph after a pass, and what a check finds where it does not.

    Attributes:
        check: yields one sentence for every place where the invariant does not hold.
    """

    name: str
    check: Check


def invariant(check: Check) -> Invariant:
    """A check as an invariant of the same name."""
    return Invariant(check.__name__, check)


@dataclass(slots=True)
class Verifier:
    """The invariants that hold by now.

    Attributes:
        holding: by name, those that were established and not retired.
    """

    holding: dict[str, Invariant] = field(default_factory=dict)

    def passed(
        self,
        graph: ShardGraph,
        name: str,
        establishes: Iterable[Invariant] = (),
        retires: Iterable[Invariant] = (),
    ) -> None:
        """Take in what a pass establishes and retires, and check all that holds then.

        Raises:
            InvariantError: something does not hold, or the pass retires what nothing established.
        """
        for gone in retires:
            if self.holding.pop(gone.name, None) is None:
                raise InvariantError(f"{name} retires {gone.name}, which does not hold before it")
        self.holding.update({made.name: made for made in establishes})
        verify(graph, name, self.holding.values())


def verify(graph: ShardGraph, after: str, invariants: Iterable[Invariant]) -> None:
    """Check invariants of a graph.

    Raises:
        InvariantError: the first that does not hold, with the pass that ran last.
    """
    view = View(graph)
    for one in invariants:
        for problem in one.check(view):
            raise InvariantError(f"after {after}, {one.name}: {problem}")
