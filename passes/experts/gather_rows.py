"""Rows of a region brought to every device, where they are few: its price, and how it is done.

The rows are gathered before the ops that only repeat them, and the partial sums that the products
leave are added up after the linear ops that make them smaller: a weighted sum over the experts of
a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import fx

from shardlang.cost.sums import Axes, gather_bytes
from shardlang.ir.graph import constrain, describe, is_item, producer, result_layout, sharding_of
from shardlang.ir.node import has_several
from shardlang.ir.origin import Origin, Reason
from shardlang.passes.experts.row_region import Region, is_product
from shardlang.passes.propagate.join_dims import operands_of
from shardlang.passes.rewrite.partial_sums import Sums
from shardlang.passes.rewrite.place_reductions import pass_on
from shardlang.passes.rewrite.reduction_cut import ReductionCut
from shardlang.rules.disjoint import keeps_zeros


@dataclass(slots=True)
class Gathering:
    """One region with its rows gathered.

    Attributes:
        above: ops before the region that then are not split.
        below: where the partial sums that it leaves are reduced.
        price: bytes per optimizer step; infinite where there is an obstacle.
        obstacle: the op after which more than the last product's sum would have to be reduced.
    """

    region: Region
    above: list[fx.Node] = field(default_factory=list)
    below: ReductionCut | None = None
    price: float = math.inf
    obstacle: str = ""

    @staticmethod
    def of(region: Region) -> Gathering:
        """The cheapest places to gather and to reduce."""
        found = Gathering(region)
        found.obstacle = found._obstacle()
        if not found.obstacle:
            up = sum(found._gather(value) for value in region.entries())
            found.below = ReductionCut.of(Sums.behind(region.exits(), region.inside, region.axes))
            found.price = up + found.below.price + gather_bytes(region.groups, region.axes)
        return found

    def _obstacle(self) -> str:
        """Why the partial sum of a product is not all that the next one needs."""
        found: set[fx.Node] = set()
        for node in self.region.inside:
            if is_item(node):
                continue
            slots = [i for i, o in enumerate(operands_of(node)) if producer(o)[0] in found]
            kept = bool(slots) and keeps_zeros(node, frozenset(slots), 1)
            if not kept and not is_product(node):
                return f"{describe(node)} does not keep rows of zeros, which other devices add"
            found.add(node)
        if any(not is_product(node) for node in self.region.exits()):
            return "more is read outside than the results of products"
        return ""

    def _gather(self, value: fx.Node) -> float:
        """Bytes that gather a value, or what it is made from where that is less."""
        axes = self.region.axes
        direct = gather_bytes(value, axes)
        if not _is_free_op(value) or len(value.users) != 1:
            return direct
        sources = [o for o in operands_of(value) if set(axes) & set(result_layout(o).sharded)]
        before = sum(gather_bytes(source, axes) for source in sources)
        if before >= direct or not sources:
            return direct
        self.above.append(value)
        return sum(self._gather(source) for source in sources)

    def outside(self) -> list[fx.Node]:
        """The ops around the region that are not split either."""
        return [*self.above, *(self.below.taken if self.below is not None else ())]

    def run(self) -> None:
        """Split the experts and not the rows."""
        region = self.region
        reason = Origin(Reason.GATHERED, region.products[0].name)
        for node in (*region.inside, *self.above):
            if not is_item(node):
                whole(node, region.axes)
        for node in region.products:
            sharding = sharding_of(node)
            sharding.factors["e"] = region.matrices
            sharding.origins.update(dict.fromkeys(region.axes, reason))
        if self.below is not None:
            pass_on(self.below)


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
