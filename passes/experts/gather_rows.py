"""Rows of a region brought to every device, where they are few: its price, and how it is done.

The rows are gathered before the ops that only repeat them, and the partial sums that the products
leave are added up behind the linear ops that make them smaller: a weighted sum over the experts of
a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import fx

from shardlang.cost.splits import change_bytes
from shardlang.ir.graph import constrain, describe, home, is_item, sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.node import has_several, info
from shardlang.ir.rule import Origin
from shardlang.passes.experts.row_region import PRODUCT, Region
from shardlang.passes.propagate.join_dims import operands_of
from shardlang.passes.rewrite.carry_groups import CUTS, ZERO_AT_ZERO
from shardlang.passes.rewrite.defer_reductions import pass_on

Axes = tuple[Axis, ...]


def gather_price(value: fx.Node, axes: Axes) -> float:
    """Bytes that make a value whole along some axes."""
    return change_bytes(home(value), home(value).without(axes).unlabelled(), value)


def _scatter_price(value: fx.Node, axes: Axes) -> float:
    """Bytes that split a value over some axes, over which it would be a partial sum."""
    split = home(value)
    return change_bytes(Layout(split.without(axes).dims, split.partial | set(axes)), split, value)


@dataclass(slots=True)
class Gathering:
    """One region with its rows gathered.

    Attributes:
        above: ops before the region that then are not split.
        below: linear ops behind it that pass the partial sum on, and in which operands.
        price: bytes per optimizer step; infinite where there is an obstacle.
        obstacle: the op after which more than the last product's sum would have to be reduced.
    """

    region: Region
    above: list[fx.Node] = field(default_factory=list)
    below: list[tuple[fx.Node, frozenset[int]]] = field(default_factory=list)
    price: float = math.inf
    obstacle: str = ""

    @staticmethod
    def of(region: Region) -> Gathering:
        """The cheapest places to gather and to reduce."""
        found = Gathering(region)
        found.obstacle = found._obstacle()
        if not found.obstacle:
            up = sum(found._gather(value) for value in region.entries())
            down = sum(found._reduce(value) for value in region.exits())
            found.price = up + down + gather_price(region.groups, region.axes)
        return found

    def _obstacle(self) -> str:
        """Why the partial sum of a product is not all that the next one needs (`carry_groups`)."""
        for node in self.region.inside:
            if not is_item(node) and node.target not in {PRODUCT} | ZERO_AT_ZERO | CUTS:
                return f"{describe(node)} does not keep rows of zeros, which other devices add"
        if any(node.target is not PRODUCT for node in self.region.exits()):
            return "more is read outside than the results of products"
        return ""

    def _gather(self, value: fx.Node) -> float:
        """Bytes that gather a value, or what it is made from where that is less."""
        axes = self.region.axes
        here = gather_price(value, axes)
        if not _is_free_op(value) or len(value.users) != 1:
            return here
        sources = [o for o in operands_of(value) if set(axes) & set(home(o).sharded)]
        there = sum(gather_price(source, axes) for source in sources)
        if there >= here or not sources:
            return here
        self.above.append(value)
        return sum(self._gather(source) for source in sources)

    def _reduce(self, value: fx.Node) -> float:
        """Bytes that reduce the partial sum of a value, where that is cheapest."""
        axes = self.region.axes
        best, extra = _scatter_price(value, axes), 0.0
        chain: list[tuple[fx.Node, frozenset[int]]] = []
        taken = 0
        while (step := _linear_reader(value)) is not None:
            chain.append(step)
            value, slots = step
            others = [o for i, o in enumerate(operands_of(value)) if i not in slots]
            extra += sum(gather_price(one, axes) for one in others)
            if extra + _scatter_price(value, axes) < best:
                best, taken = extra + _scatter_price(value, axes), len(chain)
        self.below += chain[:taken]
        return best

    def outside(self) -> list[fx.Node]:
        """The ops around the region that are not split either."""
        return [*self.above, *(node for node, _ in self.below)]

    def run(self) -> None:
        """Split the experts and not the rows."""
        region = self.region
        reason = Origin("has all rows of its experts", region.products[0].name)
        for node in (*region.inside, *self.outside()):
            if not is_item(node):
                whole(node, region.axes)
        for node in region.products:
            sharding = sharding_of(node)
            sharding.factors["e"] = region.matrices
            sharding.origins.update(dict.fromkeys(region.axes, reason))
        for node, slots in self.below:
            for axis in region.axes:
                pass_on(node, axis, slots)


def whole(node: fx.Node, axes: Axes) -> None:
    """Take some axes from an op."""
    sharding = sharding_of(node)
    sharding.factors = {name: dim.without(axes) for name, dim in sharding.factors.items()}
    for axis in axes:
        sharding.origins.pop(axis, None)


def _is_free_op(node: fx.Node) -> bool:
    """Whether a value is the one result of an op that need not stay split as it is."""
    if node.op != "call_function" or is_item(node) or node.target is constrain:
        return False
    return not has_several(node) and not sharding_of(node).linear


def _linear_reader(value: fx.Node) -> tuple[fx.Node, frozenset[int]] | None:
    """The only reader of a value, if it is linear in it, and the operands that the value is."""
    if len(value.users) != 1:
        return None
    (user,) = value.users
    if info(user).sharding is None or not _is_free_op(user):
        return None
    slots = frozenset(i for i, operand in enumerate(operands_of(user)) if operand is value)
    return (user, slots) if slots in sharding_of(user).rule.linear else None
