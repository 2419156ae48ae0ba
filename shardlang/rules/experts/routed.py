"""Rules of rows in routed order: the factors of rows and of groups are split together."""

from __future__ import annotations

from shardlang.ir.experts.route import Route
from shardlang.ir.node import layout_of
from shardlang.ir.reshard import Reshard, apply_reshard
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.experts.local_grouped import grouped_mm_here
from shardlang.rules.experts.local_routed import (
    collect,
    dispatch,
    routed_groups,
    routed_groups_at,
    routed_mm,
    routed_reshape,
    routed_rows,
    routed_rows_here,
)
from shardlang.rules.local_shape import place
from shardlang.rules.refine import reshape_spec
from shardlang.rules.registry import rule
from shardlang.rules.view import local_sizes
from shardlang.rules.writing import arrow, names


def _carried(call: Call) -> str:
    """Every dim stays; the rows that come in and those that go out lie alike, in two orders.

    The groups are split as the rows are, but for the route's own axes.
    """
    rest = names(len(call.out) - 1)
    return arrow([["s", *rest], ["n@s"]], [["t@s", *rest]])


def _as_reshard(call: Call, sharding: Sharding) -> LocalCall:
    """The reshard that the runtime knows, between layouts that carry their labels by now."""
    x, groups, route = call.operand("x"), call.operand("groups"), call["route"]
    assert isinstance(route, Route)
    reshard = Reshard(route.axes, layout_of(x), layout_of(call.node), route=route)
    return apply_reshard, (x, reshard, groups), {}


rule(dispatch, collect, spec=_carried, linear=["x"], localize=_as_reshard)
rule(
    routed_groups, spec="n -> s@n", detached=True,
    localize=lambda call, sharding: (routed_groups_at, (call["groups"], call["route"]), {}),
)  # fmt: skip


def _product(call: Call, sharding: Sharding) -> LocalCall:
    groups = sharding.factors["e"]
    return grouped_mm_here, (*call.operands, place(groups), groups.size), {}


rule(
    routed_mm, name="grouped_mm", flops=["x result"],
    spec="s i, e@s i o, s -> s o", linear=["x", "weight"],
    localize=_product, passes=False,
)  # fmt: skip


def _regrouped(call: Call) -> str:
    return reshape_spec(call.shapes[0], call.out)


def _regrouped_here(call: Call, sharding: Sharding) -> LocalCall:
    return routed_reshape, (call.operand("x"), local_sizes(sharding)[1:]), {}


rule(
    routed_reshape, name="reshape",
    spec=_regrouped, linear=["x"], localize=_regrouped_here, view=True,
)  # fmt: skip


def _lookup(call: Call) -> str:
    rest = names(len(call.out) - 1)
    return arrow([["e@s", *rest], ["s"]], [["s", *rest]])


def _lookup_here(call: Call, sharding: Sharding) -> LocalCall:
    groups = sharding.factors["e"]
    return routed_rows_here, (*call.operands, place(groups), groups.size), {}


rule(routed_rows, name="index", spec=_lookup, linear=["x"], localize=_lookup_here)
