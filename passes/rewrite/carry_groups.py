"""carry_groups: between two products by the same groups of rows, partial sums need no reduction.

Where the groups of a product are split, every device has the rows of its own groups, and zeros in
all others. An activation of zero is zero, so what stands between the two products of an expert
keeps that form, and the second product reads no row but a device's own: the partial sum passes
through, and one reduction behind the experts is left. Invariant after the pass: a value passed on
so is read by such ops and products alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from shardlang.ir.graph import ShardGraph, is_item, sharding_of
from shardlang.ir.mesh import Axis
from shardlang.ir.rule import Origin
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.propagate.join_dims import operands_of
from shardlang.passes.rewrite.defer_reductions import is_free
from shardlang.rules.call import Call

aten = torch.ops.aten
PRODUCT = torch.ops.shardlang.grouped_mm.default
ZERO_AT_ZERO = {
    aten.silu.default, aten.gelu.default, aten.relu.default, aten.tanh.default, aten.mul.Tensor,
    aten.leaky_relu.default, aten.hardswish.default, aten.mish.default, aten.neg.default,
    aten.clone.default, aten.to.dtype,
}  # fmt: skip
"""Ops that give zero where their operands, or one factor of a product, are zero."""
CUTS = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.slice.Tensor}
"""Ops that take parts along a dim; along another than the rows they keep rows together."""


@dataclass(frozen=True, slots=True)
class CarryGroups:
    """Pass partial sums through the experts."""

    name: str = "carry_groups"
    establishes: ClassVar[tuple[Invariant, ...]] = ()
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Visit every product by groups whose groups are split."""
        for node in graph.graph.nodes:
            if node.target is PRODUCT:
                for axis in sharding_of(node).factors["e"].axes:
                    carry(node, axis)
        return graph


@dataclass(slots=True)
class Region:
    """What reads the rows of one product, up to other products by the same groups."""

    start: fx.Node
    axis: Axis
    values: dict[fx.Node, None] = field(default_factory=dict)
    ends: dict[fx.Node, None] = field(default_factory=dict)

    def grow(self) -> bool:
        """Collect the region; False where something else reads a value of it."""
        waiting = [self.start]
        while waiting:
            value = waiting.pop(0)
            self.values[value] = None
            for user in value.users:
                if self._ends_at(user, value):
                    self.ends[user] = None
                elif not self._passes(user):
                    return False
                elif user not in self.values:
                    waiting.append(user)
        return bool(self.ends)

    def _ends_at(self, user: fx.Node, value: fx.Node) -> bool:
        """Whether the reader is a product of these rows by the same groups, split alike."""
        if user.target is not PRODUCT:
            return False
        sharding, call, mine = sharding_of(user), Call(user), Call(self.start)
        same = call["groups"] is mine["groups"] and call["x"] is value is not call["weight"]
        split = sharding.factors["e"] == sharding_of(self.start).factors["e"]
        return same and split and self.axis not in sharding.linear

    def _passes(self, user: fx.Node) -> bool:
        if is_item(user):
            return True
        if user.op != "call_function" or not is_free(user, self.axis):
            return False
        if user.target in CUTS:
            return Call(user).dim() != 0
        return user.target in ZERO_AT_ZERO


def carry(start: fx.Node, axis: Axis) -> None:
    """Pass the partial sum of one product on, as far as products by the same groups."""
    region = Region(start, axis)
    if not region.grow():
        return
    origin = Origin("passes the rows of its groups on", start.name)
    for node in (*region.values, *region.ends):
        if node is not start and not is_item(node):
            sharding = sharding_of(node)
            sharding.linear[axis] = frozenset(
                i for i, operand in enumerate(operands_of(node)) if operand in region.values
            )
            sharding.origins[axis] = origin
