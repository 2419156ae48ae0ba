"""defer_reductions: sums of partial sums are reduced once.

Where every operand of an addition is a partial sum over an axis, perhaps behind views and scalings
that nobody else reads, the addition passes the partial sum on and one reduction behind it does for
all. Parallel attention and MLP branches then cost one all-reduce, not two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from shardlang.ir.graph import ShardGraph, home, is_item, sharding_of
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info
from shardlang.ir.rule import Origin
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.propagate.join_dims import operands_of


@dataclass(frozen=True, slots=True)
class DeferReductions:
    """Let additions of partial sums pass them on."""

    name: str = "defer_reductions"
    establishes: ClassVar[tuple[Invariant, ...]] = ()
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Visit every addition in order, so that sums of sums are found too."""
        for node in graph.graph.nodes:
            if info(node).sharding is not None and node.op == "call_function" and is_sum(node):
                for axis in graph.mesh.axes:
                    defer(node, axis)
        return graph


def is_sum(node: fx.Node) -> bool:
    """Whether the op is jointly linear in all of several operands."""
    rule = sharding_of(node).rule
    return len(rule.operands) > 1 and frozenset(range(len(rule.operands))) in rule.linear


def defer(node: fx.Node, axis: Axis) -> None:
    """Pass partial sums over one axis through an addition, if all its operands are such."""
    if not is_free(node, axis):
        return
    chains = [chain(operand, axis) for operand in operands_of(node)]
    if any(found is None for found in chains):
        return
    everything = frozenset(range(len(chains)))
    for one in {n for found in chains if found is not None for n in found}:
        pass_on(one, axis, frozenset({0}))
    pass_on(node, axis, everything)


def is_free(node: fx.Node, axis: Axis) -> bool:
    """Whether the op is not split along the axis and states nothing."""
    sharding = sharding_of(node)
    free = axis not in sharding.linear and sharding.factor_of(axis) is None
    return free and info(node).stated is None


def chain(value: fx.Node, axis: Axis) -> list[fx.Node] | None:
    """The linear ops of one operand between a partial sum and a value; None if there is none."""
    found: list[fx.Node] = []
    while axis not in home(value).partial:
        if is_item(value) or value.op != "call_function" or len(value.users) != 1:
            return None
        operands = operands_of(value)
        if len(operands) != 1 or frozenset({0}) not in sharding_of(value).rule.linear:
            return None
        if not is_free(value, axis):
            return None
        found.append(value)
        value = operands[0]
    return found if len(value.users) == 1 else None


def pass_on(node: fx.Node, axis: Axis, operands: frozenset[int]) -> None:
    """Mark an op as passing partial sums of some operands."""
    sharding = sharding_of(node)
    sharding.linear[axis] = operands
    sharding.origins[axis] = Origin("passes a partial sum on", node.name)
