"""Which ops a partial sum may pass, along some mesh axes, and what must be whole or split then.

An op that is linear in some operands together passes their partial sums on: the result is partial
too. An operand that is whole or split becomes a summand for nothing (one device keeps it, the
others have zeros), so an addition passes even where one of its terms is not a partial sum.

*Disjoint* partial sums pass more. Where the groups of a product are split, or the rows of a table,
one device computes each row of the result, and all others have zeros there. An op that handles
every row by itself and maps zeros to zeros, linear or not, keeps that. Backward, the gradient of
such a value is right in a device's own rows alone: in all others the op's derivative is taken at
zero. That does no harm. Before the op stand only ops of the same kind, and first of all the product
or the look-up, which reads no row of a gradient but its own. Any other operand of such an op gets
a gradient of zero from the other rows: whatever the operand is, the result there is zero.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from torch import fx

from shardlang.cost.sums import Axes, all_reduce_bytes
from shardlang.ir.graph import constrain, is_item, producer, sharding_of
from shardlang.ir.node import info
from shardlang.passes.propagate.join_dims import operands_of
from shardlang.rules.disjoint import Rows, keeps_zeros, own_rows_read, rows_left


@dataclass(frozen=True, slots=True)
class Passing:
    """How an op may pass a partial sum on.

    Attributes:
        slots: the operands that then are partial sums.
        rows: of disjoint partial sums, their rows; then all of `slots` must be such.
        unsplit: whether the op is split along the axes, and then no longer is.
    """

    slots: frozenset[int]
    rows: Rows | None = None
    unsplit: bool = False


@dataclass(slots=True)
class Sums:
    """The partial sums over some axes, and the ops that may pass them on.

    Attributes:
        made: ops that leave a partial sum as they stand, and the rows of what they leave.
        passing: ops that may pass one on, in the order of the graph.
        apart: ops that are looked at elsewhere.
    """

    axes: Axes
    made: dict[fx.Node, Rows | None] = field(default_factory=dict)
    passing: dict[fx.Node, Passing] = field(default_factory=dict)
    apart: Container[fx.Node] = ()

    @staticmethod
    def of(nodes: Iterable[fx.Node], axes: Axes) -> Sums:
        """Those of some nodes, which are in the order of the graph."""
        sums = Sums(axes)
        for node in nodes:
            if info(node).sharding is None or is_item(node):
                continue
            if leaves_partial(node, axes):
                sums.made[node] = rows_left(node, axes)
            elif any(sums.reaches(source) for source in node.all_input_nodes):
                sums.visit(node)
        return sums

    @staticmethod
    def behind(made: Iterable[fx.Node], apart: Container[fx.Node], axes: Axes) -> Sums:
        """Those behind some ops of one result that are to leave a partial sum."""
        sums = Sums(axes, dict.fromkeys(made), apart=apart)
        nodes = next(iter(sums.made)).graph.nodes if sums.made else ()
        others = (n for n in nodes if n not in sums.made and n not in apart)
        for node in others:
            if info(node).sharding is not None and any(map(sums.reaches, node.all_input_nodes)):
                sums.visit(node)
        return sums

    def reaches(self, value: fx.Node) -> bool:
        """Whether a value may be a partial sum."""
        source = producer(value)[0]
        return source in self.made or source in self.passing

    def rows_of(self, value: fx.Node) -> Rows | None:
        """The rows of a value that is a disjoint partial sum if it is partial."""
        source = producer(value)[0]
        passing = self.passing.get(source)
        return self.made.get(source) if passing is None else passing.rows

    def visit(self, node: fx.Node) -> None:
        """Note an op behind a partial sum, if it may pass it on."""
        if not _is_open(node):
            return
        operands = operands_of(node)
        inside = {i: o for i, o in enumerate(operands) if self.reaches(o)}
        found = self._disjoint(node, inside) if is_free(node, self.axes) else None
        found = found or self._linear(node, inside)
        if found is not None:
            self.passing[node] = found

    def _disjoint(self, node: fx.Node, inside: dict[int, fx.Node]) -> Passing | None:
        """How an op that keeps rows of zeros passes disjoint partial sums on."""
        kinds = {self.rows_of(value) for value in inside.values()}
        (rows,) = kinds if len(kinds) == 1 else (None,)
        slots = frozenset(inside)
        if rows is None or not keeps_zeros(node, slots, rows.dims):
            return None
        return Passing(slots, rows)

    def _linear(self, node: fx.Node, inside: dict[int, fx.Node]) -> Passing | None:
        """How a linear op passes partial sums on; of several sets of operands, the dearest."""
        rule = sharding_of(node).rule
        unsplit = not is_free(node, self.axes)
        sets = [one for one in rule.linear if one & inside.keys()]
        if unsplit:
            sets = [one for one in sets if self._carries(node, one & inside.keys())]
        if not sets:
            return None

        def price(chosen: frozenset[int]) -> float:
            return sum(all_reduce_bytes(inside[i], self.axes) for i in chosen & inside.keys())

        return Passing(max(sets, key=price) if len(sets) > 1 else sets[0], unsplit=unsplit)

    def _carries(self, node: fx.Node, slots: Iterable[int]) -> bool:
        """Whether an op is split by dims that operands and results have, and need not be."""
        if node.target is constrain:
            return False
        sharding = sharding_of(node)
        rule, mine = sharding.rule, set(self.axes)
        names = {name for name, dim in sharding.factors.items() if mine & set(dim.axes)}
        read = {name for i in slots for name in rule.operands[i].factors}
        return names <= read and not names & rule.inner and not mine & sharding.closed

    def reads_own_rows(self, node: fx.Node, slot: int) -> bool:
        """Whether an op reads, of a disjoint partial sum, no row that is elsewhere."""
        sharding, operands = sharding_of(node), operands_of(node)
        if slot not in own_rows_read(sharding.rule) or operands.count(operands[slot]) > 1:
            return False
        mine = rows_left(node, self.axes)
        same = mine is not None and self.rows_of(operands[slot]) == mine
        return same and not set(self.axes) & set(sharding.linear)


def leaves_partial(node: fx.Node, axes: Axes) -> bool:
    """Whether an op's results are partial sums over all of some axes."""
    sharding = sharding_of(node)
    return set(axes) <= set(sharding.linear) | sharding.partial_axes()


def is_free(node: fx.Node, axes: Axes) -> bool:
    """Whether an op is not split along any of some axes."""
    sharding = sharding_of(node)
    return all(axis not in sharding.linear and sharding.factor_of(axis) is None for axis in axes)


def _is_open(node: fx.Node) -> bool:
    """Whether nothing is stated for an op."""
    return node.op == "call_function" and info(node).stated is None
