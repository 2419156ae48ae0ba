"""The flow of layouts through ops: what an op takes from its neighbours, and when it may."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

from shardlang.ir.graph import (
    ShardError,
    ShardGraph,
    constrain,
    describe,
    home,
    is_item,
    producer,
    sharding_of,
)
from shardlang.ir.layout import DimLayout, Layout, all_pieces_nonempty
from shardlang.ir.leaf import LeafKind
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info, tensor_of
from shardlang.ir.rule import Origin, Rule, Sharding
from shardlang.rules.call import Call

Allow = Callable[[Rule, str], bool]


def carried(rule: Rule, factor: str) -> bool:
    """Whether a factor is only carried through the op: pointwise, or the batch of a contraction."""
    if factor in rule.inner or factor in rule.lowered:
        return False
    return rule.passes or sum(factor in operand.factors for operand in rule.operands) > 1


def outer(rule: Rule, factor: str) -> bool:
    """Whether splitting the factor leaves every result whole or split, never partial."""
    return factor not in rule.inner and factor not in rule.lowered


class Flow:
    """The state of propagation: which ops are weights, and which factors are still open."""

    def __init__(self, graph: ShardGraph) -> None:
        self.graph = graph
        self.leaves = dict(graph.placeholders())
        self.nodes = [node for node in graph.graph.nodes if info(node).sharding is not None]
        self.calls: dict[fx.Node, list[fx.Node]] = {n: operands_of(n) for n in self.nodes}
        self.weights = self._weights()
        self.waiting = {n for n in self.nodes if self._is_value(n)}

    def _weights(self) -> set[fx.Node]:
        """Parameters, and what is computed from parameters alone."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            leaf = self.leaves.get(node)
            sources = self.calls[node]
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
            sharding.origins[axis] = Origin("stated", stated.place)

    def open_factors(self, node: fx.Node) -> set[str]:
        """Factors of a node that propagation may still lay out."""
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
            for index, operand in enumerate(self.calls[node]):
                if producer(operand)[0] in self.weights:
                    self._claim(node, index, operand, wanted)

    def _claim(self, node: fx.Node, index: int, operand: fx.Node, axes: tuple[Axis, ...]) -> None:
        sharding = sharding_of(node)
        layout = home(operand)
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
                sharding.origins[axis] = Origin("claimed by a stated parameter", operand.name)

    def sweep(self, allow: Allow, axes: Iterable[Axis], only: set[fx.Node] | None = None) -> bool:
        """Forward and backward sweeps to a fixed point; whether anything changed."""
        eligible = frozenset(axes)
        ever = False
        nodes = [n for n in self.nodes if n not in self.waiting and (only is None or n in only)]
        changed = True
        while changed:
            changed = False
            for node in nodes:
                changed |= self.forward(node, allow, eligible)
            for node in reversed(nodes):
                changed |= self.backward(node, allow, eligible)
            ever |= changed
        return ever

    def forward(self, node: fx.Node, allow: Allow, axes: frozenset[Axis]) -> bool:
        """Take what the operands' layouts suggest."""
        if node.op == "placeholder":
            return False
        changed = False
        for index, operand in enumerate(self.calls[node]):
            layout = home(operand)
            if layout.sharded:
                found = sharding_of(node).read_operand(index, layout)
                allowed = self._from_operand(node, operand, axes)
                changed |= self.adopt(node, found, allow, allowed, operand.name)
        return changed

    def _from_operand(
        self, node: fx.Node, operand: fx.Node, axes: frozenset[Axis]
    ) -> frozenset[Axis]:
        """A parameter's layout on a data axis is storage: it flows to weights only."""
        if producer(operand)[0] in self.weights and node not in self.weights:
            return axes - self.graph.data_axes
        return axes

    def backward(self, node: fx.Node, allow: Allow, axes: frozenset[Axis]) -> bool:
        """Take what the users of the node's results need."""
        if node in self.weights:
            axes = axes - self.graph.data_axes
        changed = False
        for user, slot, index in uses_of(node, self.calls):
            if user in self.waiting:
                continue
            sharding = sharding_of(user)
            if not sharding.axes():
                continue
            found = sharding_of(node).read_result(index, sharding.operand(slot))
            changed |= self.adopt(node, found, allow, axes, user.name)
        return changed

    def adopt(
        self,
        node: fx.Node,
        found: dict[str, DimLayout],
        allow: Allow,
        axes: frozenset[Axis],
        source: str,
    ) -> bool:
        """Put suggested factor layouts on an op, as far as its rule and state permit."""
        if not found:
            return False
        sharding, open_factors = sharding_of(node), self.open_factors(node)
        changed = False
        for names in groups_of(sharding.rule, found):
            if all(name in open_factors and allow(sharding.rule, name) for name in names):
                changed |= self._adopt(node, sharding, {n: found[n] for n in names}, axes, source)
        return changed

    def _adopt(
        self,
        node: fx.Node,
        sharding: Sharding,
        found: dict[str, DimLayout],
        axes: frozenset[Axis],
        source: str,
    ) -> bool:
        merged = {n: merge(sharding, n, dim, axes, tuple(found)) for n, dim in found.items()}
        news: dict[str, DimLayout] = {n: dim for n, dim in merged.items() if dim is not None}
        if len(news) < len(found) or all(sharding.factors[n] == dim for n, dim in news.items()):
            return False
        if len({dim.axes for dim in news.values()}) > 1:
            return False
        before = dict(sharding.factors)
        sharding.factors.update(news)
        if not writable(sharding):
            sharding.factors = before
            return False
        for name, dim in news.items():
            for axis in set(dim.axes) - set(before[name].axes):
                sharding.origins[axis] = Origin("flows from", source)
        return True


def merge(
    sharding: Sharding, name: str, found: DimLayout, axes: frozenset[Axis], group: tuple[str, ...]
) -> DimLayout | None:
    """The suggestion cut down to the axes that may be added here; None if nothing new fits."""
    here = sharding.factors[name]
    elsewhere = {a for n, dim in sharding.factors.items() if n not in group for a in dim.axes}
    blocked = elsewhere | sharding.closed | set(sharding.linear)
    keep = [a for a in found.axes if a in here.axes or (a in axes and a not in blocked)]
    wanted = found.only(keep)
    if wanted.only(here.axes) != here or not all_pieces_nonempty(wanted):
        return None
    return wanted


def writable(sharding: Sharding) -> bool:
    """Whether every dim of every operand and result can be written with these factor layouts."""
    rule = sharding.rule
    specs = [spec for operand in rule.operands for spec in operand.dims]
    specs += [spec for dims in rule.results for spec in dims]
    return all(sharding.compose(spec) is not None for spec in specs)


def groups_of(rule: Rule, found: dict[str, DimLayout]) -> list[tuple[str, ...]]:
    """Factors to adopt together: linked ones all at once or not at all, others alone."""
    linked = {name: group for group in rule.linked for name in group}
    groups: dict[tuple[str, ...], None] = {}
    for name in found:
        group = linked.get(name, (name,))
        if all(member in found for member in group):
            groups[group] = None
    return list(groups)


def operands_of(node: fx.Node) -> list[fx.Node]:
    """Tensor operands, slot by slot."""
    if node.op == "placeholder":
        return []
    return Call(node).operands


def uses_of(node: fx.Node, calls: dict[fx.Node, list[fx.Node]]) -> list[tuple[fx.Node, int, int]]:
    """(user, operand slot, result index) for every use of a node's results."""
    found = []
    for user in node.users:
        values = [user] if is_item(user) else [node]
        for value in values:
            _, index = producer(value)
            readers = list(value.users) if value is not node else [user]
            for reader in readers:
                slots = calls.get(reader, [])
                found += [
                    (reader, slot, index) for slot, source in enumerate(slots) if source is value
                ]
    return found


def whole_layout(node: fx.Node) -> Layout:
    """The unsharded layout of a node's value."""
    return Layout.whole(tensor_of(node).shape)
