"""Rows of a region sent to the devices that have their experts: its price, and how it is done.

A *dispatch* stands before the region and a *collect* behind it. Between them the rows and the
experts are split together, and every value says in its layout in which order its rows are.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from shardlang.cost.ring import sent_bytes
from shardlang.cost.splits import change_bytes
from shardlang.ir.collective import Collective, Kind
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.experts.route import Route
from shardlang.ir.graph import is_item, result_layout, sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.node import NodeInfo, info, set_info, tensor_of
from shardlang.ir.origin import Origin, Reason
from shardlang.ir.rewriter import Rewriter
from shardlang.ir.rule import Sharding
from shardlang.passes.experts.row_region import Region, is_product, regroups, row_factor
from shardlang.passes.propagate.bind_rules import bind_node
from shardlang.rules.call import Call
from shardlang.rules.experts.local_routed import (
    collect,
    dispatch,
    routed_groups,
    routed_mm,
    routed_reshape,
    routed_rows,
)
from shardlang.rules.schema import Operator


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


class Sending:
    """Puts one region into the order of its route."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.route = Route(region.axes, region.rows, region.matrices, by=region.groups.name)
        self.rows = region.rows.ordered(self.route.order)
        self.reason = Origin(Reason.ROUTED, region.products[0].name)

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
        known, at = info(value), info(before)
        record = NodeInfo(known.value, at.module, at.source, differentiable=known.differentiable)
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
