"""Where partial sums over some axes are reduced: one minimum cut.

Every op that leaves a partial sum, or may pass one on, is a vertex. Source side is *reduced*: the
op runs as it stands, on whole or split operands. Sink side is *partial*: its results are partial
sums. A cut edge is bytes:

- a partial value that others read reduced pays once for all of them: a reduce-scatter if all want
  it split, an all-reduce if one wants it whole;
- an op that passes a partial sum on pays for the gradient of every other operand, which is a sum
  over the axes then; where the op was split, for the gather of that operand.

What a partial sum's reader asks of the gradient is left out where it is the same on both sides: a
whole value whose slice is read gathers the gradient as a reduce-scatter does. Ties go to the source
side: a partial sum is reduced as early as that costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import networkx as nx
from networkx.algorithms.flow import boykov_kolmogorov
from torch import fx

from shardlang.cost.sums import all_reduce_bytes, gather_bytes, scatter_bytes, vary_bytes
from shardlang.ir.graph import is_item, producer, result_layout, sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.node import has_several, info
from shardlang.passes.propagate.join_dims import operands_of
from shardlang.passes.rewrite.partial_sums import Passing, Sums

REDUCED, PARTIAL = "reduced", "partial"
UNIT = 1000
"""Capacity of a byte: prices are bytes and thousandths of them, and a flow counts whole numbers."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How one op reads a value that may be a partial sum.

    Attributes:
        reader: the op.
        wanted: the layout that it wants where it does not read a partial sum.
        passing: whether it reads the partial sum itself if it passes it on.
    """

    reader: fx.Node
    wanted: Layout
    passing: bool


@dataclass(slots=True)
class ReductionCut:
    """The cut of one graph along some axes.

    Attributes:
        taken: ops that pass a partial sum on, and how.
        price: bytes of the cut: those of an optimizer step that depend on it.
    """

    sums: Sums
    net: nx.DiGraph = field(default_factory=nx.DiGraph)
    taken: dict[fx.Node, Passing] = field(default_factory=dict)
    price: float = 0.0

    @staticmethod
    def of(sums: Sums) -> ReductionCut:
        """The cheapest cut; of equal ones, that with the fewest partial values."""
        cut = ReductionCut(sums)
        cut.net.add_nodes_from([REDUCED, PARTIAL])
        for node in (*sums.made, *sums.passing):
            cut._add_op(node)
        value, (_, late) = nx.minimum_cut(cut.net, REDUCED, PARTIAL, flow_func=boykov_kolmogorov)
        cut.price = value / UNIT
        cut.taken = {node: how for node, how in sums.passing.items() if node in late}
        return cut

    def _add_op(self, node: fx.Node) -> None:
        """The edges of one op: what its operands cost, and what its results do."""
        passing = self.sums.passing.get(node)
        if passing is None:
            self.net.add_edge(node, PARTIAL)
        else:
            self._add_operands(node, passing)
        for value in values_of(node):
            self._add_value(value)

    def _add_operands(self, node: fx.Node, passing: Passing) -> None:
        """What an op that passes a partial sum on needs, and pays for its other operands."""
        for slot, operand in enumerate(operands_of(node)):
            if slot in passing.slots:
                if passing.rows is not None:
                    self.net.add_edge(producer(operand)[0], node)
            elif (price := self._other_bytes(node, operand, passing)) > 0:
                other = ("other", operand)
                way = {} if math.isinf(price) else {"capacity": round(UNIT * price)}
                self.net.add_edges_from([(REDUCED, other, way), (other, node)])

    def _other_bytes(self, node: fx.Node, operand: fx.Node, passing: Passing) -> float:
        """Bytes that an operand costs which is not a partial sum where the op passes one on.

        They are infinite where only a route moves its rows.
        """
        axes = self.sums.axes
        if passing.unsplit:
            return gather_bytes(operand, axes)
        trained = info(node).differentiable and info(operand).differentiable
        if not trained or self._varies(operand):
            return 0.0
        return vary_bytes(operand, axes)

    def _varies(self, value: fx.Node) -> bool:
        """Whether the gradient of a whole value is summed over the axes whatever is decided."""
        readers = (
            user for user in value.users if info(user).differentiable and _splits(user, self.sums)
        )
        wanted = (layout for reader in readers for layout in _wanted(reader, value))
        return any(set(self.sums.axes).isdisjoint(layout.sharded) for layout in wanted)

    def _add_value(self, value: fx.Node) -> None:
        """What the readers of one value pay for where it is a partial sum."""
        axes, readings = self.sums.axes, list(self._readings(value))
        split = [one for one in readings if set(axes) & set(one.wanted.sharded)]
        whole = all_reduce_bytes(value, axes) if readings else 0.0
        forward = self._scatter_bytes(value, split, backward=False) if split else whole
        self._charge(("any", value), forward, readings)
        if split:
            self._charge(("whole", value), whole - forward, [r for r in readings if r not in split])
        if split and not self._was_whole(value):
            both = self._scatter_bytes(value, split, backward=True)
            self._charge(("gradient", value), both - forward, split)

    def _was_whole(self, value: fx.Node) -> bool:
        """Whether a value is whole where it is not a partial sum."""
        passing = self.sums.passing.get(producer(value)[0])
        return passing is not None and not passing.unsplit

    def _scatter_bytes(self, value: fx.Node, split: list[Reading], *, backward: bool) -> float:
        return max(
            scatter_bytes(value, one.wanted, self.sums.axes, backward=backward) for one in split
        )

    def _charge(self, once: tuple[str, fx.Node], price: float, readings: list[Reading]) -> None:
        """An amount that a partial value pays if any of some readers is on the reduced side."""
        if price <= 0 or not readings:
            return
        self.net.add_edge(once, producer(once[1])[0], capacity=round(UNIT * price))
        for one in readings:
            self.net.add_edge(one.reader if one.passing else REDUCED, once)

    def _readings(self, value: fx.Node) -> Iterator[Reading]:
        """Every reading of a value that does not take a partial sum whatever is decided."""
        layout = result_layout(value)
        for user in value.users:
            if user in self.sums.apart:
                continue
            if user.op == "output":
                yield Reading(user, Layout(layout.dims), False)
                continue
            passing = self.sums.passing.get(user)
            for slot, operand in enumerate(operands_of(user)):
                if operand is value and not self._reads_partial(user, slot):
                    mine = passing is not None and slot in passing.slots
                    yield Reading(user, sharding_of(user).operand(slot), mine)

    def _reads_partial(self, user: fx.Node, slot: int) -> bool:
        """Whether an op takes a partial sum in one slot, or none of the rows that are elsewhere."""
        partial = sharding_of(user).operand(slot).partial
        return set(self.sums.axes) <= partial or self.sums.reads_own_rows(user, slot)


def values_of(node: fx.Node) -> list[fx.Node]:
    """The values that an op gives: itself, or the items that are picked of its results."""
    if not has_several(node):
        return [node]
    return [user for user in node.users if is_item(user)]


def _splits(user: fx.Node, sums: Sums) -> bool:
    """Whether an op is split along the axes, or passes partial sums over them, in any case."""
    if user.op != "call_function" or info(user).sharding is None or user in sums.passing:
        return False
    sharding = sharding_of(user)
    return any(axis in sharding.linear or sharding.factor_of(axis) for axis in sums.axes)


def _wanted(user: fx.Node, value: fx.Node) -> Iterable[Layout]:
    """The layouts in which an op wants a value, that are no partial sums."""
    sharding = sharding_of(user)
    layouts = (sharding.operand(i) for i, o in enumerate(operands_of(user)) if o is value)
    return [layout for layout in layouts if not layout.partial & set(sharding.linear)]
