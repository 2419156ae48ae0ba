"""The words of a graph's text: types, arguments and targets."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator

import torch
from torch import fx
from torch.fx.node import Argument, Target

from shardlang.ir.collective import ReduceOp
from shardlang.ir.compat import OpOverload
from shardlang.ir.experts.route import Route
from shardlang.ir.graph import constrain, is_item, producer
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import product
from shardlang.ir.node import info, tensors_of
from shardlang.ir.printed_type import printed_type
from shardlang.ir.reshard import Reshard, apply_reshard, apply_reshards

OURS = "shardlang."


def quoted(text: str) -> str:
    """A string in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def call_text(node: fx.Node) -> str:
    """`add.Tensor(x, y)`, `all_gather[tp](x)`, `pair[0]`."""
    if node.target in (apply_reshard, apply_reshards):
        value, reshard, *groups = node.args
        read = [shown(arg) for arg in (value, *groups, *_along(reshard))]
        return f"{_reshard_name(reshard)}({', '.join(read)})"
    if node.target is operator.getitem and isinstance(node.args[1], int):
        return f"{shown(node.args[0])}[{node.args[1]}]"
    parts = [shown(arg) for arg in node.args]
    parts += [f"{key}={shown(value)}" for key, value in node.kwargs.items()]
    return f"{target_name(node.target)}({', '.join(parts)})"


def _reshard_name(reshard: Argument) -> str:
    """`all_reduce_max[tp]`; several reshards sent as one have one name."""
    first = reshard[0] if isinstance(reshard, (list, tuple)) else reshard
    assert isinstance(first, Reshard)
    kind = first.kind if first.reduce is ReduceOp.SUM else f"{first.kind}_{first.reduce}"
    return f"{kind}[{product(first.axes)}]"


def _along(reshard: Argument) -> list[Argument]:
    """The route of a reshard, or what it reads."""
    if not isinstance(reshard, Reshard):
        return []
    return [one for one in (reshard.route, reshard.reads) if one is not None]


def target_name(target: Target) -> str:
    """`linear`, `add.Tensor`, `mine::product`, `constrain`, `rules.local:max_over`."""
    if isinstance(target, OpOverload):
        return str(target).replace(".", "::", 1).removeprefix("aten::").removesuffix(".default")
    if target is constrain:
        return "constrain"
    assert callable(target)
    return f"{target.__module__.removeprefix(OURS)}:{target.__name__}"


def shown(value: Argument) -> str:
    """An argument as text."""
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, torch.device):
        return f"device({quoted(str(value))})"
    if isinstance(value, OpOverload):
        return f"op({quoted(target_name(value))})"
    return route_text(value) if isinstance(value, Route) else repr(value)


def route_text(route: Route) -> str:
    """`route(dp: 7@dp by groups of 4@dp)`; `back` where rows come back."""
    back = " back" if route.inverse else ""
    return f"route({product(route.axes)}: {route.rows} {route.order}{back})"


def types_of(node: fx.Node, local: bool = False) -> str:
    """The printed type of a node's value, or of each of its values.

    In a program (`local`), the values of an op with several have their layouts where they are
    picked; with the op itself stand their global types.
    """
    value = info(node).value
    plain = local and info(node).layout is None
    layouts = whole_layouts(node) if plain else layouts_of(node)
    if isinstance(value, torch.Tensor):
        return printed_type(value.dtype, layouts[0])
    if not isinstance(value, (list, tuple)):
        return "none"
    rest = iter(layouts)
    return "(" + ", ".join(_type(one, rest) for one in value) + ")"


def _type(value: object, layouts: Iterator[Layout]) -> str:
    return printed_type(value.dtype, next(layouts)) if isinstance(value, torch.Tensor) else "none"


def layouts_of(node: fx.Node) -> list[Layout]:
    """The layouts of a node's values: labelled once they are, else as its op is split."""
    layout = info(node).layout
    if layout is not None:
        return [layout] if isinstance(layout, Layout) else list(layout)
    return op_layouts(node) or whole_layouts(node)


def whole_layouts(node: fx.Node) -> list[Layout]:
    """The layouts of a node's values, none split."""
    return [Layout.whole(value.shape) for value in tensors_of(node)]


def op_layouts(node: fx.Node) -> list[Layout]:
    """The layouts in which an op, or a reshard, leaves its values; none before ops have rules."""
    if node.target is apply_reshard:
        reshard = node.args[1]
        assert isinstance(reshard, Reshard)
        return [reshard.dst]
    source, index = producer(node)
    sharding = info(source).sharding
    if sharding is None:
        return []
    results = [sharding.result(place) for place in range(len(sharding.rule.results))]
    return [results[index]] if is_item(node) else results
