"""The flow of layouts through ops: what an op takes from its neighbours, and when it may."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from torch import fx

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.dims import DimGraph
from shardlang.ir.graph import (
    ShardError,
    ShardGraph,
    constrain,
    describe,
    producer,
    result_layout,
    sharding_of,
)
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import LeafKind
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info, set_info
from shardlang.ir.origin import Origin, Reason
from shardlang.ir.rule import Rule, Sharding
from shardlang.passes.propagate.adopt import adopt, groups_of, reads_all, together
from shardlang.passes.propagate.join_dims import rejoin
from shardlang.passes.propagate.tables import tables_of

Allow = Callable[[Rule, str], bool]
Read = Callable[[Sharding], dict[str, DimLayout]]


def carried(rule: Rule, factor: str) -> bool:
    """Whether a factor is only carried through the op: pointwise, or the batch of a contraction."""
    shared = sum(factor in operand.factors for operand in rule.operands) > 1
    return outer(rule, factor) and (rule.passes or factor in rule.lowered or shared)


def outer(rule: Rule, factor: str) -> bool:
    """Whether splitting the factor leaves every result whole or split, never partial."""
    return factor not in rule.inner and (rule.repeats or factor not in rule.lowered)


class Flow:
    """The state of propagation: which ops are weights, and which factors are still open.

    Attributes:
        tables: what depends on no parameter and no input; no layout flows through it.
        waiting: inputs and values whose stated layouts do not hold yet.
        changes: the ops whose layouts have changed, in order.
        split: the ops that are split over some axis.

    A sweep visits the ops of the dimension graph in topological order. It does not go from vertex
    to vertex: a layout of a value says something about several of its dims at once, so what an op
    reads of its neighbours is found by the lists of operands and uses that the graph keeps.
    """

    def __init__(self, graph: ShardGraph) -> None:
        self.graph = graph
        self.leaves = dict(graph.placeholders())
        self.dims: DimGraph = graph.dims
        self.tables = tables_of(graph)
        self.nodes = [node for node in self.dims.operands if node not in self.tables]
        self.weights = self._weights()
        self.waiting = {n for n in self.nodes if self._is_value(n)}
        self.changes: list[fx.Node] = []
        self.split = {n for n in self.nodes if sharding_of(n).axes()}

    def _weights(self) -> set[fx.Node]:
        """Parameters, and what is computed from parameters alone."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            leaf = self.leaves.get(node)
            sources = self.dims.operands[node]
            if (leaf is not None and leaf.kind is LeafKind.PARAM) or (
                sources and all(producer(source)[0] in found for source in sources)
            ):
                found.add(node)
        return found

    def _is_value(self, node: fx.Node) -> bool:
        """Whether the node takes its stated layout in the second phase."""
        return node not in self.weights and (node.op == "placeholder" or node.target is constrain)

    def state_weights(self) -> None:
        """Give stated parameters their layouts."""
        for node in self.nodes:
            if node in self.weights:
                self.state(node)

    def state_values(self) -> None:
        """Give stated inputs and values their layouts."""
        for node in self.nodes:
            if node in self.waiting:
                self.state(node)
        self.waiting.clear()

    def state(self, node: fx.Node) -> None:
        """Give one node its stated layout, if it has one."""
        stated = info(node).stated
        if stated is None:
            return
        sharding = sharding_of(node)
        for i, dim in enumerate(stated.layout.dims):
            if i not in stated.open:
                sharding.factors[f"d{i}"] = dim
        for axis in stated.layout.partial:
            sharding.linear[axis] = frozenset({0})
        for axis in (*stated.layout.sharded, *stated.layout.partial):
            sharding.origins[axis] = Origin(Reason.STATED, stated.place)
        self.note(node)

    def open_factors(self, node: fx.Node) -> set[str]:
        """Factors of a node that propagation may still lay out; a table is laid out last."""
        if node in self.tables:
            return set()
        rule = sharding_of(node).rule
        names = {name for name, _ in rule.sizes} - rule.whole
        stated = info(node).stated
        if stated is not None:
            return {name for name in names if int(name[1:]) in stated.open}
        if node.op == "placeholder" and self.leaves[node].kind is not LeafKind.PARAM:
            return set()
        return names

    def claim(self, axes: Iterable[Axis]) -> None:
        """Contractions that read a parameter stated on a model axis split by its dim there."""
        wanted = tuple(axes)
        for node in self.nodes:
            if node in self.weights or sharding_of(node).rule.passes:
                continue
            for index, operand in enumerate(self.dims.operands[node]):
                if producer(operand)[0] in self.weights:
                    self._claim(node, index, operand, wanted)

    def _claim(self, node: fx.Node, index: int, operand: fx.Node, axes: tuple[Axis, ...]) -> None:
        sharding = sharding_of(node)
        layout = result_layout(operand)
        for factor, dim in sharding.read_operand(index, layout).items():
            mine = dim.only(axes)
            if not mine.axes or factor in sharding.rule.whole:
                continue
            for axis in mine.axes:
                other = sharding.factor_of(axis)
                if other is not None and (other != factor or sharding.factors[factor] != mine):
                    raise ShardError(
                        "SH0403",
                        f"two parameters of {describe(node)} claim different dims over `{axis}`",
                        node=node,
                        help="state both parameters over the same factor, or leave one whole",
                    )
            sharding.factors[factor] = mine
            sharding.closed |= frozenset(mine.axes)
            for axis in mine.axes:
                sharding.origins[axis] = Origin(Reason.CLAIMED, operand.name)
            self.note(node)

    def forward(self, node: fx.Node, allow: Allow, axes: frozenset[Axis]) -> None:
        """Take what the operands' layouts suggest."""
        for index, operand in enumerate(self.dims.operands[node]):
            if producer(operand)[0] in self.split:
                layout, allowed = result_layout(operand), self._from_operand(node, operand, axes)
                read = partial(Sharding.read_operand, index=index, layout=layout)
                self._take(node, read, layout, allow, allowed, operand, forward=True)

    def _from_operand(
        self, node: fx.Node, operand: fx.Node, axes: frozenset[Axis]
    ) -> frozenset[Axis]:
        """The axes along which an op takes what an operand suggests."""
        return frozenset(axis for axis in axes if not self.is_storage(node, operand, axis))

    def is_storage(self, node: fx.Node, operand: fx.Node, axis: Axis) -> bool:
        """Whether an op reads a parameter that a data axis splits for storage alone."""
        weight = producer(operand)[0] in self.weights and node not in self.weights
        return weight and axis in self.graph.data_axes

    def backward(self, node: fx.Node, allow: Allow, axes: frozenset[Axis]) -> None:
        """Take what the users of the node's results need."""
        if node in self.weights:
            axes = axes - self.graph.data_axes
        for user, slot, index in self.dims.uses[node]:
            if user in self.split and user not in self.waiting:
                layout = sharding_of(user).operand(slot)
                read = partial(Sharding.read_result, index=index, layout=layout)
                self._take(node, read, layout, allow, axes, user)

    def _take(
        self,
        node: fx.Node,
        read: Read,
        layout: Layout,
        allow: Allow,
        axes: frozenset[Axis],
        source: fx.Node,
        forward: bool = False,
    ) -> None:
        """Take what a neighbour suggests, by another rule where the op's own cannot read it.

        Nor can it read a part of factors that are split together, forward.
        """
        own = sharding_of(node)
        found = read(own)
        self.adopt(node, found, allow, axes, source)
        known = together(own.rule, found) if forward else found
        if not own.rule.others or reads_all(known, layout):
            return
        for rule in own.rule.others:
            other = own.under(rule)
            if other is None or not reads_all(read(other), layout):
                continue
            self._set(node, other)
            if self.adopt(node, read(other), allow, axes, source):
                return
            self._set(node, own)

    def _set(self, node: fx.Node, sharding: Sharding) -> None:
        """Put an op under another rule."""
        before = sharding_of(node).rule
        set_info(node, replace(info(node), sharding=sharding))
        rejoin(self.dims, node, before)

    def adopt(
        self,
        node: fx.Node,
        found: dict[str, DimLayout],
        allow: Allow,
        axes: frozenset[Axis],
        source: fx.Node,
    ) -> bool:
        """Put suggested factor layouts on an op, as far as it permits; whether any changed."""
        before = len(self.changes)
        if not found:
            return False
        sharding, open_factors = sharding_of(node), self.open_factors(node)
        for names in groups_of(sharding.rule, found):
            may = all(name in open_factors and allow(sharding.rule, name) for name in names)
            if may and adopt(sharding, {n: found[n] for n in names}, axes, source.name):
                self.note(node)
        return len(self.changes) > before

    def note(self, node: fx.Node) -> None:
        """Note that the layout of an op has changed."""
        self.changes.append(node)
        self.split.add(node)
