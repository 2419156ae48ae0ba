"""What holds of routes: rows in routed order meet only rows in the same order.

Routed and unrouted rows have one type, so this is checked apart. It knows what a dispatch and a
collect are and what the rules say, and nothing of how `route_rows` found its regions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import fx

from shardlang.ir.graph import is_item, sharding_of
from shardlang.ir.route import Route
from shardlang.passes.invariants.invariant import View, invariant
from shardlang.rules.call import Call
from shardlang.rules.local_routed import collect, dispatch, routed_groups, routed_mm, routed_rows

Order = tuple[Route, fx.Node] | None
"""Where rows were dispatched, and by which groups; None for rows in their own places."""


@invariant
def orders_agree(view: View) -> Iterator[str]:
    """Every op's rows are in one order; results are in none."""
    orders: dict[fx.Node, Order] = {}
    for node in view.nodes:
        if node.op == "output":
            routed = [str(n) for n in node.all_input_nodes if orders[n] is not None]
            yield from (f"result `{name}` is in routed order" for name in routed)
        elif is_item(node):
            orders[node] = orders[node.all_input_nodes[0]]
        else:
            problem, orders[node] = _order(node, orders)
            if problem:
                yield f"{node}: {problem}"


def _order(node: fx.Node, orders: dict[fx.Node, Order]) -> tuple[str, Order]:
    """What is wrong with an op's rows, and the order of those that it gives."""
    found = {source: orders[source] for source in node.all_input_nodes}
    if node.target in (dispatch, collect, routed_groups):
        return _moved(node, orders)
    routed = {order for order in found.values() if order is not None}
    if node.target in (routed_mm, routed_rows) and not routed:
        return "it needs rows in routed order", None
    if not routed:
        return "", None
    if len(routed) > 1:
        return "its rows are in two routed orders", None
    return _mixed(node, found), next(iter(routed))


def _moved(node: fx.Node, orders: dict[fx.Node, Order]) -> tuple[str, Order]:
    call = Call(node)
    route, groups = replace(call["route"], inverse=False), call["groups"]
    order = (route, groups)
    if orders[groups] is not None:
        return "its groups are in routed order", None
    if node.target is collect:
        return ("" if orders[call["x"]] == order else "its rows were not dispatched so"), None
    if node.target is dispatch and orders[call["x"]] is not None:
        return "its rows are dispatched twice", order
    return "", order


def _mixed(node: fx.Node, found: dict[fx.Node, Order]) -> str:
    """What is wrong where some operands are in routed order."""
    rule = sharding_of(node).rule
    first = rule.results[0][0] if rule.results[0] else ()
    if len(first) != 1 or len(first[0]) != 1:
        return "it does not keep the rows that it reads"
    for operand, spec in zip(Call(node).operands, rule.operands, strict=True):
        rows = bool(spec.dims) and spec.dims[0] == first
        if rows != (found[operand] is not None) and first[0][0] in spec.factors:
            return f"`{operand}` is not in the order of its other rows"
        if not rows and found[operand] is not None:
            return f"it does not handle the rows of `{operand}` one by one"
    return ""
