"""Chains: the parameter dims that are split together.

Splitting the inner dim of one projection splits the heads that it reads, and so the rows of the
projections that made them: following a split through the dimension graph, in both directions and
through every regrouping of dims, gives all parameter dims that share it. A chain is such a set. In
a transformer they are the residual stream, the heads of each layer, the inner width of each MLP,
and the vocabulary.

Invariant: no reshard stands between the members of a chain, other than those of its `gathered` and
`sliced` values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx
from torch import fx

from shardlang.ir.dim_layout import DimLayout, all_shards_nonempty
from shardlang.ir.dims import Dim, OpFactor
from shardlang.ir.graph import ShardGraph, producer, sharding_of
from shardlang.ir.leaf import LeafKind
from shardlang.ir.mesh import Axis
from shardlang.ir.node import tensor_of
from shardlang.ir.regroup import join_blocks, join_factors, split_blocks, split_factors
from shardlang.ir.rule import DimSpec, Rule
from shardlang.passes.propagate.align_units import Units, in_units
from shardlang.passes.propagate.flow import Flow


@dataclass(slots=True)
class Chain:
    """Dims that are split together.

    Attributes:
        places: how each dim in the chain is split.
        ops: the split factors of every op that the chain runs through.
        gathered: split values that an op reads which cannot be split so.
        sliced: values that are split although the op that makes them cannot be.
        params: the dims of parameters and buffers in the chain, by name and dim.
    """

    places: dict[Dim, DimLayout] = field(default_factory=dict)
    ops: dict[fx.Node, dict[str, DimLayout]] = field(default_factory=dict)
    gathered: dict[fx.Node, None] = field(default_factory=dict)
    sliced: dict[fx.Node, None] = field(default_factory=dict)
    params: dict[tuple[str, int], DimLayout] = field(default_factory=dict)


class Dims:
    """The dimension graph of a model in which nothing is split yet."""

    def __init__(self, graph: ShardGraph) -> None:
        self.flow = Flow(graph)
        self.nodes, self.weights, self.joined = self.flow.nodes, self.flow.weights, self.flow.dims
        self.operands, self.uses = self.joined.operands, self.joined.uses
        leaves = dict(graph.placeholders())
        self.params = {n: leaf for n, leaf in leaves.items() if leaf.kind is LeafKind.PARAM}
        self.buffers = {n: leaf for n, leaf in leaves.items() if leaf.kind is LeafKind.BUFFER}
        self.states = {**self.params, **self.buffers}
        self._units = Units(self.joined)

    def unit(self, place: Dim) -> int:
        """How many indices of a dim stay together: the size of a head, say."""
        return self._units.unit(place)

    def seed(self, place: Dim, axis: Axis, cut_units: bool = False) -> DimLayout | None:
        """A dim split over an axis between its units; None where it has fewer than devices.

        With `cut_units`, those dims alone, split between any two indices.
        """
        node, index, dim = place
        rule = sharding_of(node).rule
        size = sum(_size(rule, block) for block in rule.results[index][dim])
        unit = self.unit(place)
        plain = DimLayout.shard(size, (axis,))
        if size % unit or size // unit < axis.size:
            return plain if cut_units and size >= axis.size else None
        return None if cut_units else in_units(plain, unit)

    def chain(self, place: Dim, layout: DimLayout) -> Chain:
        """All that is split with one dim."""
        return _Reach(self).run(place, layout)

    @cached_property
    def whole_numbers(self) -> nx.DiGraph:
        """The ops, with an edge from each to every op that reads whole numbers of it."""
        net = nx.DiGraph()
        net.add_nodes_from(self.nodes)
        for node in self.nodes:
            read = [v for v in self.operands[node] if not tensor_of(v).dtype.is_floating_point]
            net.add_edges_from((producer(value)[0], node) for value in read)
        return net

    def sources(self, node: fx.Node) -> Iterator[fx.Node]:
        """The parameters that a weight is computed from."""
        if node in self.params:
            yield node
        for source in self.operands[node]:
            yield from self.sources(producer(source)[0])


class _Reach:
    """One walk on the dimension graph, breadth first."""

    def __init__(self, dims: Dims) -> None:
        self.dims = dims
        self.chain = Chain()
        self.found: list[Dim] = []
        self.shards: dict[Dim, dict[int, DimLayout]] = {}

    def run(self, place: Dim, layout: DimLayout) -> Chain:
        self.visit(place, layout)
        for _ in nx.generic_bfs_edges(self.dims.joined.net, place, neighbors=self.follow):
            pass
        return self.chain

    def visit(self, place: Dim, layout: DimLayout) -> None:
        """Note how a dim is split, and follow it later."""
        self.chain.places[place] = layout
        self.found.append(place)
        if place.op in self.dims.states:
            self.chain.params[self.dims.states[place.op].name, place.dim] = layout

    def follow(self, place: Dim) -> Iterator[Dim]:
        """Carry a split dim into the op that made it and the ops that read it; where it got."""
        self.found = []
        node, index, dim = place
        layout = self.chain.places[place]
        if node.op == "call_function":
            spec = sharding_of(node).rule.results[index][dim]
            if not self.enter(node, spec, layout):
                self.chain.sliced.setdefault(node)
        for user, slot, used in self.dims.uses[node]:
            if used == index:
                spec = sharding_of(user).rule.operands[slot].dims[dim]
                if not self.enter(user, spec, layout):
                    self.chain.gathered.setdefault(self.dims.operands[user][slot])
        yield from self.found

    def enter(self, node: fx.Node, spec: DimSpec, layout: DimLayout) -> bool:
        """Split an op as one dim of one of its values is; whether it can be."""
        rule = sharding_of(node).rule
        blocks = tuple(_size(rule, block) for block in spec)
        shards, lost = split_blocks(layout, blocks)
        found: dict[str, DimLayout] = {}
        for block, shard in zip(spec, shards, strict=True):
            digits, dropped = split_factors(shard, tuple(rule.size(name) for name in block))
            lost |= dropped
            found.update((n, d) for n, d in zip(block, digits, strict=True) if d.axes)
        fits = all(all_shards_nonempty(d) and n not in rule.whole for n, d in found.items())
        return not lost and fits and self.split(node, found)

    def split(self, node: fx.Node, found: dict[str, DimLayout]) -> bool:
        """Split factors of an op; whether it can carry them beside those that it has."""
        rule = sharding_of(node).rule
        mine = self.chain.ops.setdefault(node, {})
        together = {name: set(group) for group in rule.linked for name in group}
        for name in found:
            if any(o != name and o not in together.get(name, ()) for o in (*mine, *found)):
                return False
        if any(mine.get(name, dim) != dim for name, dim in found.items()):
            return False
        news = [name for name in found if name not in mine]
        mine.update(found)
        if news:
            self.leave(node, news)
        return True

    def leave(self, node: fx.Node, news: list[str]) -> None:
        """Write the new factors into every dim of the op's operands and results that has them."""
        rule = sharding_of(node).rule
        ends = {
            (dim, joint.slot)
            for name in news
            for dim, joint in self.dims.joined.dims(OpFactor(node, name))
        }
        for place, slot in sorted(ends, key=_in_order):
            dims = rule.results[place.result] if slot is None else rule.operands[slot].dims
            self.write(node, place, dims[place.dim])

    def write(self, node: fx.Node, place: Dim, spec: DimSpec) -> None:
        """Lay out one dim; one of several stretches when all of them are known."""
        if place in self.chain.places:
            return
        rule, mine = sharding_of(node).rule, self.chain.ops[node]
        start = 0
        for block in spec:
            size = _size(rule, block)
            if any(name in mine for name in block):
                whole = [mine.get(n) or DimLayout.whole(rule.size(n)) for n in block]
                joined = join_factors(whole)
                if joined is None:
                    return
                self.shards.setdefault(place, {})[start] = joined
            start += size
        self.cover(place, start)

    def cover(self, place: Dim, size: int) -> None:
        """Visit a dim once its known stretches, side by side, are all of it."""
        found: list[DimLayout] = []
        shards = self.shards[place]
        at = 0
        while at in shards:
            found.append(shards[at])
            at += shards[at].size
        if at == size:
            self.visit(place, found[0] if len(found) == 1 else join_blocks(found))


def _in_order(end: tuple[Dim, int | None]) -> tuple[bool, int, int, int]:
    """Operands before results, each in their order."""
    place, slot = end
    return slot is None, slot or 0, place.result if slot is None else 0, place.dim


def _size(rule: Rule, block: tuple[str, ...]) -> int:
    size = 1
    for name in block:
        size *= rule.size(name)
    return size
