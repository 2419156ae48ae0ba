"""route_rows: where the axes of the tokens also split the experts, move what is cheaper to move.

A product of rows by groups needs every row and the matrix of its group on one device. Three ways
lead there (`Strategy`), and the one that moves the fewest bytes, forward and backward, is taken:

- *gather experts*: the matrices come to the rows (as FSDP does; what propagation leaves);
- *route rows*: every row goes to the device that has its matrix, and its result comes back
  (`send_rows`);
- *gather rows*: all rows come to every device, and the results are added up (`gather_rows`).

How many rows are routed depends on the data; equal shares are expected. Of two tensors of groups
that decide over one op, the first decides, and the experts of the other are gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from shardlang.cost.sums import gather_bytes
from shardlang.ir.experts.strategies import Strategies, Strategy
from shardlang.ir.graph import ShardError, ShardGraph, describe
from shardlang.ir.mesh import Axis, product
from shardlang.ir.node import info
from shardlang.passes.experts.gather_rows import Gathering
from shardlang.passes.experts.row_region import Region, barred, regions
from shardlang.passes.experts.send_rows import Sending, route_price
from shardlang.passes.invariants.duplicates import everything_read, nothing_twice
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.orders import orders_kept


@dataclass(frozen=True, slots=True)
class RouteRows:
    """Route the rows of experts where that moves fewer bytes than gathering."""

    name: str = "route_rows"
    establishes: ClassVar[tuple[Invariant, ...]] = (orders_kept,)
    retires: ClassVar[tuple[Invariant, ...]] = (nothing_twice, everything_read)

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Visit all regions.

        The strategies and their bytes are left in `info.strategies`, findings on experts that are
        gathered because no other strategy is open in `info.refusals`.
        """
        changed: set[fx.Node] = set()
        for region in regions(graph.graph, graph.mesh.axes):
            if changed.isdisjoint(region.inside):
                made, nodes = bring_together(region)
                graph.info.strategies.append(made)
                changed |= nodes
        graph.info.refusals = [refusal(*found) for found in barred(graph.graph.nodes)]
        return graph


def bring_together(region: Region) -> tuple[Strategies, set[fx.Node]]:
    """Take the cheapest way for one region: what all ways cost, and the ops that it changed."""
    gathering = Gathering.of(region)
    prices = {
        Strategy.GATHER_EXPERTS: experts_price(region),
        Strategy.ROUTE_ROWS: route_price(region),
        Strategy.GATHER_ROWS: gathering.price,
    }
    taken = min(prices, key=prices.__getitem__)
    changed: set[fx.Node] = set()
    if taken is Strategy.ROUTE_ROWS:
        Sending(region).run()
        changed = {*region.inside}
    elif taken is Strategy.GATHER_ROWS:
        gathering.run()
        changed = {*region.inside, *gathering.outside()}
    names = tuple(product.name for product in region.products)
    closed = {Strategy.GATHER_ROWS: gathering.obstacle} if gathering.obstacle else {}
    module = info(region.products[0]).module
    return Strategies(names, module, region.axes, prices, taken, closed), changed


def refusal(node: fx.Node, common: tuple[Axis, ...], further: tuple[Axis, ...]) -> ShardError:
    """Why the experts of a product are gathered whatever that costs."""
    over, also = (product(axes) for axes in (common, further))
    return ShardError(
        "SH0407",
        f"the experts of {describe(node)} are gathered over `{over}`: rows are not sent to experts "
        f"that are split over `{also}` too, which does not split the rows",
        node=node,
        help=f"split the experts over `{over}` alone, and the columns of each over `{also}`",
    )


def experts_price(region: Region) -> float:
    """Bytes that gather the matrices, and scatter their gradients."""
    return sum(gather_bytes(weight, region.axes) for weight in region.weights())
