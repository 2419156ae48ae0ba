"""route_rows: where the axes of the tokens also split the experts, move what is cheaper to move.

A product of rows by groups needs every row and the matrix of its group on one device. Three ways
lead there, and the one that moves the fewest bytes, forward and backward, is taken:

- *gather experts*: the matrices come to the rows (as FSDP does; what propagation leaves);
- *route rows*: every row goes to the device that has its matrix, and its result comes back;
- *gather rows*: all rows come to every device, and the results are added up.

How many rows are routed depends on the data; equal shares are expected. Of two tensors of groups
that decide over one op, the first decides, and the experts of the other are gathered. The ways
and their bytes are left in `info.ways`. Every value in a region says in its layout in which
order its rows are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from shardlang.cost.ring import sent_bytes
from shardlang.cost.splits import change_bytes
from shardlang.cost.sums import gather_bytes
from shardlang.ir.collective import Collective, Kind
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.experts.route import Route
from shardlang.ir.graph import ShardError, ShardGraph, describe, is_item, result_layout, sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.node import NodeInfo, info, set_info, tensor_of
from shardlang.ir.records import Ways
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.rule import Origin, Sharding
from shardlang.passes.experts.gather_rows import Gathering
from shardlang.passes.experts.row_region import Region, barred, regions, regroups, row_factor
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.shardings import orders_kept
from shardlang.passes.propagate.bind_rules import bind_node
from shardlang.rules.call import Call
from shardlang.rules.disjoint import is_product
from shardlang.rules.experts.local_routed import (
    collect,
    dispatch,
    routed_groups,
    routed_mm,
    routed_reshape,
    routed_rows,
)
from shardlang.rules.schema import Operator

GATHER_EXPERTS, ROUTE_ROWS, GATHER_ROWS = "gather experts", "route rows", "gather rows"

DONE_BY = {
    GATHER_EXPERTS: "every device gets all experts",
    ROUTE_ROWS: "every row goes to the device that has its expert, and its result comes back",
    GATHER_ROWS: "every device gets all rows, and the results are added up",
}


@dataclass(frozen=True, slots=True)
class RouteRows:
    """Route the rows of experts where that moves fewer bytes than gathering."""

    name: str = "route_rows"
    establishes: ClassVar[tuple[Invariant, ...]] = (orders_kept,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Visit all regions.

        The names of values in routed order are left in `info.routed`, findings on experts that are
        gathered for want of another way in `info.refusals`.
        """
        done, routed = graph.info.ways, graph.info.routed
        changed: set[fx.Node] = set()
        for region in regions(list(graph.graph.nodes), graph.mesh.axes):
            if not changed.isdisjoint(region.inside):
                continue
            gathering = Gathering.of(region)
            ways = {
                GATHER_EXPERTS: experts_price(region),
                ROUTE_ROWS: route_price(region),
                GATHER_ROWS: gathering.price,
            }
            taken = min(ways, key=ways.__getitem__)
            first = region.products[0]
            names = tuple(product.name for product in region.products)
            closed = {GATHER_ROWS: gathering.obstacle} if gathering.obstacle else {}
            done.append(Ways(names, info(first).module, region.axes, ways, taken, closed))
            if taken == ROUTE_ROWS:
                Rewrite(region).run()
                routed.update(node.name for node in region.inside)
                changed.update(region.inside)
            elif taken == GATHER_ROWS:
                gathering.run()
                changed.update(region.inside, gathering.outside())
        graph.info.refusals = [refusal(*found) for found in barred(graph.graph.nodes)]
        return graph


def refusal(node: fx.Node, common: tuple[Axis, ...], further: tuple[Axis, ...]) -> ShardError:
    """Why the experts of a product are gathered whatever that costs."""
    over, also = ("*".join(axis.name for axis in axes) for axes in (common, further))
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


def route_price(region: Region) -> float:
    """Bytes that send rows out and results back, and that gather the groups."""
    moved = sum(_route_price(value, region) for value in (*region.entries(), *region.exits()))
    known = Layout((Route(region.axes, region.rows, region.matrices).known,))
    return moved + change_bytes(result_layout(region.groups), known, region.groups)


def _route_price(value: fx.Node, region: Region) -> int:
    layout = result_layout(value)
    dispatch = Collective(Kind.DISPATCH, region.axes, layout, layout)
    sent = sent_bytes(dispatch, tensor_of(value).dtype.itemsize)
    return sent * (2 if info(value).differentiable else 1)


class Rewrite:
    """Puts a region into routed order."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.route = Route(region.axes, region.rows, region.matrices, by=region.groups.name)
        self.rows = region.rows.ordered(self.route.order)
        self.reason = Origin("has the rows of its experts", region.products[0].name)

    def run(self) -> None:
        """Dispatch what comes in, collect what goes out, split rows and experts together."""
        region = self.region
        entries, exits = region.entries(), region.exits()
        first = next(iter(region.inside))
        groups = self._groups(first)
        for value in entries:
            made = self._carry(dispatch, value, self._reader(value))
            self._put(value, made, inside=True)
        for node in region.readers:
            self._together(node, groups)
        for node in region.inside:
            if not is_item(node) and regroups(node):
                self._regroup(node)
            if not is_item(node):
                self._in_order(node)
        for value in exits:
            after = value.next
            while after.op != "output" and (is_item(after) or after in region.inside):
                after = after.next
            made = self._carry(collect, value, after)
            set_info(made, replace(info(made), module=info(value).module))
            self._put(value, made, inside=False)

    def _reader(self, value: fx.Node) -> fx.Node:
        return next(node for node in self.region.inside if node in value.users)

    def _groups(self, before: fx.Node) -> fx.Node:
        """The groups in routed order."""
        source = self.region.groups
        made = self._add(routed_groups, (source, self.route), source, before)
        sharding = sharding_of(made)
        sharding.factors.update(s=self.rows, n=self.route.known)
        return made

    def _carry(self, target: Operator, value: fx.Node, before: fx.Node) -> fx.Node:
        """A dispatch or collect of one value."""
        route = replace(self.route, inverse=target is collect)
        made = self._add(target, (value, self.region.groups, route), value, before)
        sharding, layout = sharding_of(made), result_layout(value)
        sharding.factors.update({f"d{i}": dim for i, dim in enumerate(layout.dims[1:])})
        out = self.rows if target is dispatch else self.region.rows
        sharding.factors.update(s=layout.dims[0], n=self.route.known, t=out)
        sharding.linear = {axis: frozenset({0}) for axis in layout.partial}
        return made

    def _add(
        self, target: Operator, args: tuple[object, ...], value: fx.Node, before: fx.Node
    ) -> fx.Node:
        here, at = info(value), info(before)
        record = NodeInfo(here.value, at.module, at.source, differentiable=here.differentiable)
        made = Rewriter(before.graph).add(target, args, record=record, before=before)
        bind_node(made)
        for axis in self.region.axes:
            sharding_of(made).origins[axis] = self.reason
        return made

    def _put(self, value: fx.Node, made: fx.Node, *, inside: bool) -> None:
        """Let the readers inside, or outside, read another value."""
        edit = Rewriter(value.graph)
        edit.redirect(value, made, lambda user: (user in self.region.inside) == inside)

    def _together(self, node: fx.Node, groups: fx.Node) -> None:
        """Split the rows and the groups of a product or lookup together."""
        call, old = Call(node), sharding_of(node)
        edit = Rewriter(node.graph)
        if is_product(node):
            edit.become(node, routed_mm, (call["x"], call["weight"], groups))
        else:
            edit.become(node, routed_rows, (call.operands[0], groups))
        bind_node(node)
        made = sharding_of(node)
        made.factors.update(old.factors if node.target is routed_mm else _renamed(old, made))
        made.factors["e"] = self.region.matrices
        made.linear, made.origins = dict(old.linear), dict(old.origins)
        for axis in self.region.axes:
            made.origins[axis] = self.reason

    def _in_order(self, node: fx.Node) -> None:
        """Let the rows of an op be those of the route."""
        factor = row_factor(node)
        assert factor is not None, "an op inside a region has rows"
        sharding_of(node).factors[factor] = self.rows

    def _regroup(self, node: fx.Node) -> None:
        """Regroup the dims of every row, however many rows there are."""
        call, old = Call(node), sharding_of(node)
        Rewriter(node.graph).become(node, routed_reshape, (call.operands[0], list(call.out[1:])))
        bind_node(node)
        made = sharding_of(node)
        made.factors.update(old.factors)
        made.linear, made.origins = dict(old.linear), dict(old.origins)


def _renamed(old: Sharding, made: Sharding) -> dict[str, DimLayout]:
    """The layouts of the factors of an op whose result is that of another rule."""
    names = (dim[0][0] for dim in made.rule.results[0])
    return dict(zip(names, old.result().dims, strict=True))
