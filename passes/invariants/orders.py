"""What holds of the order of rows, from `route_rows` on."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from shardlang.ir.dim_layout import RowOrder
from shardlang.ir.experts.route import Route
from shardlang.ir.rule import Sharding
from shardlang.passes.invariants.invariant import View, invariant


@invariant
def orders_kept(view: View) -> Iterator[str]:
    """Every op gets the rows of its operands in the order that it reads; results are in their own.

    Only an op that takes a route changes the order of rows. Other parts of a layout a reshard may
    still change.
    """
    if not any(_has_order(sharding) for _, sharding in view.sharded):
        return
    for node, sharding in view.sharded:
        route, ordered = _route_of(node), _has_order(sharding)
        for index, operand in enumerate(view.operands(node)):
            have = view.made(operand)
            if not ordered and not any(have.orders):
                continue
            want = sharding.operand(index)
            if have.orders != want.orders:
                yield f"{node}: the rows of `{operand}` are {have}, read as {want}"
        if route is not None:
            yield from _change(node, sharding, route)
        elif ordered:
            yield from _one_order(node, sharding)
    for result in view.graph.result_nodes:
        if result is not None and any(view.made(result).orders):
            yield f"result `{result}` is {view.made(result)}"


def _has_order(sharding: Sharding) -> bool:
    """Whether a route has sent some rows that an op reads or makes."""
    return any(dim.order is not None for dim in sharding.factors.values())


def _route_of(node: fx.Node) -> Route | None:
    """The route that an op takes."""
    for arg in node.args:
        if isinstance(arg, Route):
            return arg
    return None


def _one_order(node: fx.Node, sharding: Sharding) -> Iterator[str]:
    """An op without a route reads and makes rows in one order."""
    count = len(sharding.rule.operands), len(sharding.rule.results)
    layouts = [sharding.operand(i) for i in range(count[0])]
    layouts += [sharding.result(i) for i in range(count[1])]
    found = {order for layout in layouts for order in layout.orders if order is not None}
    if len(found) > 1:
        yield f"{node} has rows in {len(found)} orders: {', '.join(sorted(map(str, found)))}"


def _change(node: fx.Node, sharding: Sharding, route: Route) -> Iterator[str]:
    """A route gives its rows their order, or takes it back."""
    want = (route.order, None) if route.inverse else (None, route.order)
    have = (sharding.operand(0).orders[0], sharding.result().orders[0])
    if have != want:
        yield f"{node}: it changes rows {_shown(have)}, and not {_shown(want)}"


def _shown(change: tuple[RowOrder | None, RowOrder | None]) -> str:
    return " to ".join(str(order or "in their own places") for order in change)
