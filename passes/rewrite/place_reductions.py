"""place_reductions: where partial sums are reduced.

An op that is split by a dim which only its operands have leaves a partial sum. Along each mesh axis
one minimum cut (`reduction_cut`) decides which of the ops behind it pass the sum on
(`partial_sums`), so that all reductions together send the fewest bytes: parallel branches need one
all-reduce, a weighted sum over the experts of a token is reduced behind the sum, and between the
two products of an expert nothing is. Invariant after the pass: an op passes partial sums of
operands in which it is linear, or disjoint ones whose rows of zeros it keeps.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from shardlang.cost.sums import Axes
from shardlang.ir.graph import ShardGraph, constrain, producer, result_layout, sharding_of
from shardlang.ir.node import info
from shardlang.ir.origin import Origin, Reason
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.sums import partials_pass
from shardlang.passes.propagate.bind_rules import bind_node
from shardlang.passes.propagate.join_dims import operands_of
from shardlang.passes.rewrite.partial_sums import Sums
from shardlang.passes.rewrite.reduction_cut import ReductionCut, values_of


@dataclass(frozen=True, slots=True)
class PlaceReductions:
    """Pass partial sums on to where their reduction costs least."""

    name: str = "place_reductions"
    establishes: ClassVar[tuple[Invariant, ...]] = (partials_pass,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Decide along every axis of the mesh."""
        for axis in graph.mesh.axes:
            sums = Sums.of(graph.graph.nodes, (axis,))
            if sums.made:
                pass_on(ReductionCut.of(sums))
        return graph


def pass_on(cut: ReductionCut) -> None:
    """Let ops pass partial sums on, and products read the rows of their own groups."""
    for node, passing in cut.taken.items():
        if passing.unsplit:
            _unsplit(node, cut.sums.axes)
        for axis in cut.sums.axes:
            sharding_of(node).linear[axis] = passing.slots
            sharding_of(node).origins[axis] = Origin(Reason.PASSES, node.name)
    partial = {*cut.sums.made, *cut.taken}
    for node in cut.sums.made:
        _read_own_rows(node, partial, cut.sums)


def _unsplit(node: fx.Node, axes: Axes) -> None:
    """Take some axes from an op; a result of the program keeps the layout that it had."""
    for value in values_of(node):
        if any(user.op == "output" for user in value.users):
            _keep_layout(value)
    sharding = sharding_of(node)
    sharding.factors = {name: dim.without(axes) for name, dim in sharding.factors.items()}


def _keep_layout(value: fx.Node) -> None:
    """Let the program give a value in the layout that it has now."""
    layout, edit = result_layout(value), Rewriter(value.graph)
    output = next(user for user in value.users if user.op == "output")
    made = edit.add(constrain, (value,), record=info(value), before=output)
    bind_node(made)
    sharding = sharding_of(made)
    sharding.factors = {f"d{i}": dim for i, dim in enumerate(layout.dims)}
    sharding.linear = {axis: frozenset({0}) for axis in layout.partial}
    edit.redirect(value, made, lambda user: user is output)


def _read_own_rows(node: fx.Node, partial: Container[fx.Node], sums: Sums) -> None:
    """Let a product by groups read a disjoint partial sum as it is."""
    for slot, operand in enumerate(operands_of(node)):
        if producer(operand)[0] in partial and sums.reads_own_rows(node, slot):
            for axis in sums.axes:
                sharding_of(node).linear[axis] = frozenset({slot})
