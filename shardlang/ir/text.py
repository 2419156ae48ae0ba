"""Graphs as text: one line per node, the same on every device and in every run.

linear = linear(x, up_weight, None) : f32[7@dp, 5, 10@tp]
all_reduce = all_reduce[tp](linear_1) : f32[7@dp, 5, 6]
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from shardlang.ir.graph import is_item, producer, sharding_of
from shardlang.ir.layout import Layout, printed_type
from shardlang.ir.node import info
from shardlang.ir.reshard import Reshard, apply_step, apply_steps
from shardlang.ir.rule import Sharding


def graph_text(graph: fx.Graph, names: Mapping[str, str] | None = None) -> str:
    """The graph, one line per node.

    Args:
        names: what to call placeholders, by node name: the tensors' own names.
    """
    return "\n".join(_lines(graph, names or {}))


def _lines(graph: fx.Graph, names: Mapping[str, str]) -> Iterator[str]:
    for node in graph.nodes:
        if node.op == "output":
            yield f"return {shown(node.args[0])}"
        elif node.op == "placeholder":
            yield f"{node.name} = leaf({names.get(node.name, node.name)}) : {types_of(node)}"
        else:
            yield f"{node.name} = {call_text(node)} : {types_of(node)}"


def call_text(node: fx.Node) -> str:
    """`add(x, y)`, `all_gather[tp](x)`, `pair[0]`."""
    if node.target is apply_step:
        value, step, *groups = node.args
        return f"{_step_name(step)}({', '.join(map(shown, (value, *groups)))})"
    if node.target is apply_steps:
        values, steps = node.args
        assert isinstance(steps, (tuple, list))
        return f"{_step_name(steps[0])}({shown(values)})"
    if node.target is operator.getitem:
        return f"{shown(node.args[0])}[{shown(node.args[1])}]"
    parts = [shown(arg) for arg in node.args]
    parts += [f"{key}={shown(value)}" for key, value in node.kwargs.items()]
    return f"{target_name(node.target)}({', '.join(parts)})"


def _step_name(step: object) -> str:
    assert isinstance(step, Reshard)
    axes = "*".join(axis.name for axis in step.axes)
    kind = step.kind if step.reduce == "sum" else f"{step.kind}_{step.reduce}"
    return f"{kind}[{axes}]"


def target_name(target: object) -> str:
    """An op's name without its namespace; `default` overloads without it too."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target).split(".", 1)[1].removesuffix(".default")
    return getattr(target, "__name__", str(target))


def shown(value: Any) -> str:
    """An argument as text."""
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return repr(value)


def types_of(node: fx.Node) -> str:
    """The printed type of a node's value, or of each of its values."""
    val = info(node).value
    layouts = _layouts(node)
    if isinstance(val, torch.Tensor):
        return printed_type(val.dtype, layouts[0]) if layouts else _plain(val)
    if isinstance(val, (list, tuple)):
        present = [v for v in val if isinstance(v, torch.Tensor)]
        if len(layouts) == len(present):
            pairs = zip(present, layouts, strict=True)
            return "(" + ", ".join(printed_type(v.dtype, at) for v, at in pairs) + ")"
        return "(" + ", ".join(_plain(v) for v in present) + ")"
    return "?"


def _plain(val: torch.Tensor) -> str:
    return printed_type(val.dtype, Layout.whole(val.shape))


def _layouts(node: fx.Node) -> list[Layout]:
    """The layouts of a node's values: labelled once they are, else as its op is split."""
    layout = info(node).layout
    if layout is not None:
        return [layout] if isinstance(layout, Layout) else list(layout)
    if node.target is apply_step:
        step = node.args[1]
        assert isinstance(step, Reshard)
        return [step.dst]
    sharding, stated = info(node).sharding, info(node).stated
    if stated is not None and (sharding is None or not sharding.axes()):
        return [stated.layout]
    if is_item(node):
        source, index = producer(node)
        return [sharding_of(source).result(index)] if info(source).sharding is not None else []
    if isinstance(sharding, Sharding):
        return [sharding.result(index) for index in range(len(sharding.rule.results))]
    return []
