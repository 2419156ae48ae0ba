"""Invariants by name, the verifier that gathers them, and the view of a graph that checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, wraps

from torch import fx

from shardlang.ir.graph import ShardGraph, is_item, is_reshard, result_layout, sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.node import Value, info, layout_of
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call


class InvariantError(AssertionError):
    """A pass broke an invariant of the graph: a fault of ours, with the pass and the node named."""


@dataclass(frozen=True, slots=True)
class Read:
    """A leaf or an op as the checks of single ops read it: what it is, how it is split, its values.

    Attributes:
        call: target, arguments and keyword arguments.
        operands: the tensor operands of an op.
        values: its own value, and those of its operands.
        sharding: a copy, for passes change shardings in place.
    """

    call: tuple[object, object, object]
    operands: list[fx.Node]
    values: tuple[Value, ...]
    sharding: Sharding | None

    @staticmethod
    def of(node: fx.Node) -> Read:
        """How a node is now."""
        operands = Call(node).operands if node.op == "call_function" else []
        values = tuple(info(one).value for one in (node, *operands))
        known = info(node).sharding
        sharding = None if known is None else known.copied()
        return Read((node.target, node.args, node.kwargs), operands, values, sharding)

    def holds_of(self, node: fx.Node) -> bool:
        """Whether the node is still so; what a pass has put anew counts as another."""
        parts = zip(self.call, (node.target, node.args, node.kwargs), strict=True)
        if not all(mine is now for mine, now in parts):
            return False
        nodes = zip(self.values, (node, *self.operands), strict=True)
        return all(info(x).value is value for value, x in nodes) and self._split_as(node)

    def _split_as(self, node: fx.Node) -> bool:
        mine, now = self.sharding, info(node).sharding
        if mine is None or now is None:
            return mine is now
        return mine.rule is now.rule and mine == now


class View:
    """A graph between two passes; what several checks read is computed once.

    Args:
        before: the graph before the pass, as it was.
    """

    def __init__(self, graph: ShardGraph, before: View | None = None) -> None:
        self.graph = graph
        self.nodes: list[fx.Node] = list(graph.graph.nodes)
        self._layouts: dict[fx.Node, Layout] = {}
        self._reads: dict[fx.Node, Read] | None = None
        self._before = (before._reads if before is not None else None) or {}
        self._layouts_before = before._layouts if before is not None else {}
        self.records = _records(graph, self.nodes)
        self.noted = dict(graph.info.layouts), dict(graph.info.draw_orders)

    @cached_property
    def ops(self) -> list[fx.Node]:
        """The op calls: neither leaves nor reshards, nor what picks one of several results."""
        calls = (node for node in self.nodes if node.op == "call_function")
        return [node for node in calls if not is_item(node) and not is_reshard(node)]

    @cached_property
    def reshards(self) -> list[fx.Node]:
        """The reshards, buckets of several among them."""
        return [node for node in self.nodes if is_reshard(node)]

    @property
    def reads(self) -> dict[fx.Node, Read]:
        """Every leaf and op call as checks of single ops read it; the same record if unchanged."""
        if self._reads is None:
            self._reads = {node: self._read(node) for node in (*self._leaves, *self.ops)}
        return self._reads

    def is_as(self, before: View) -> bool:
        """Whether nothing that a check reads has changed: a pass may find nothing to do."""
        mine, theirs = self.records, before.records
        if len(mine) != len(theirs) or any(a is not b for a, b in zip(mine, theirs, strict=True)):
            return False
        if self.noted != before.noted:
            return False
        if any(info(node).sharding is not None for node in self.nodes):
            return bool(self._before) and not self.touched  # shardings are changed in place
        return True

    @property
    def touched(self) -> list[fx.Node]:
        """The leaves and op calls that are not as they were before the pass."""
        return [node for node, read in self.reads.items() if self._before.get(node) is not read]

    def _read(self, node: fx.Node) -> Read:
        before = self._before.get(node)
        return before if before is not None and before.holds_of(node) else Read.of(node)

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """The tensor operands of an op call; a leaf has none."""
        return self.reads[node].operands

    @cached_property
    def _leaves(self) -> list[fx.Node]:
        return [node for node, _ in self.graph.placeholders()]

    @cached_property
    def sharded(self) -> list[tuple[fx.Node, Sharding]]:
        """Leaves and op calls with their shardings."""
        wanted = [*self._leaves, *self.ops]
        return [(node, sharding_of(node)) for node in wanted if info(node).sharding is not None]

    def made(self, node: fx.Node) -> Layout:
        """The layout in which a value comes out of the op that made it."""
        found = self._layouts.get(node)
        if found is None:
            found = self._layouts[node] = self._layout(node)
        return found

    def _layout(self, node: fx.Node) -> Layout:
        """The same, as before the pass where it has not touched the op."""
        read = self.reads.get(node)
        if read is not None and self._before.get(node) is read and node in self._layouts_before:
            return self._layouts_before[node]
        bucketed = is_item(node) and is_reshard(node.all_input_nodes[0])
        return layout_of(node) if bucketed else result_layout(node)


def _records(graph: ShardGraph, nodes: list[fx.Node]) -> list[object]:
    """All that a graph consists of; what a pass has changed counts as another object."""
    parts = [(n, n.target, n.args, n.kwargs, info(n)) for n in nodes]
    return [*graph.leaves, *graph.results, *(part for each in parts for part in each)]


Check = Callable[[View], Iterator[str]]

OpCheck = Callable[[fx.Node, View], Iterator[str]]
"""A check of one leaf or op, which reads nothing but its `Read`."""


@dataclass(frozen=True, slots=True)
class Invariant:
    """What holds of a graph after a pass, and what a check finds where it does not.

    Attributes:
        check: yields one sentence for every place where the invariant does not hold.
        of_op: the same of one leaf or op, if each is checked by itself.
    """

    name: str
    check: Check
    of_op: OpCheck | None = None

    def recheck(self, view: View) -> Iterator[str]:
        """The check, where the invariant held before the pass: of ops, those that it touched."""
        if self.of_op is None:
            yield from self.check(view)
            return
        for node in view.touched:
            yield from self.of_op(node, view)


def invariant(check: Check) -> Invariant:
    """A check as an invariant of the same name."""
    return Invariant(check.__name__, check)


def invariant_of_ops(check: OpCheck) -> Invariant:
    """A check of every leaf and op by itself, as an invariant of the same name.

    Once it holds, it is computed again only of those that a pass has touched.
    """

    @wraps(check)
    def check_all(view: View) -> Iterator[str]:
        for node in view.reads:
            yield from check(node, view)

    return Invariant(check.__name__, check_all, check)


@dataclass(slots=True)
class Verifier:
    """The invariants that hold by now.

    Attributes:
        holding: by name, those that were established and not retired.
        view: the graph of which they hold, as it was.
    """

    holding: dict[str, Invariant] = field(default_factory=dict)
    view: View | None = None

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
        new = {made.name: made for made in establishes}
        view = View(graph, self.view)
        same = self.view is not None and view.is_as(self.view)
        for one in (new if same else self.holding | new).values():
            for problem in one.check(view) if one.name in new else one.recheck(view):
                raise InvariantError(f"after {name}, {one.name}: {problem}")
        self.holding.update(new)
        self.view = view


def verify(graph: ShardGraph, after: str, invariants: Iterable[Invariant]) -> None:
    """Check invariants of a graph.

    Raises:
        InvariantError: the first that does not hold, with the pass that ran last.
    """
    Verifier().passed(graph, after, invariants)
