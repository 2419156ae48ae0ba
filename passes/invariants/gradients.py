"""What holds of the gradient types: a value is in the state that its reader takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import fx

from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.node import has_several, info, layout_of
from shardlang.ir.reshard import Reshard
from shardlang.ir.rule import Sharding
from shardlang.ir.state import State
from shardlang.passes.invariants.invariant import View, invariant
from shardlang.passes.invariants.reshards import single_reshards


@invariant
def layouts_labelled(view: View) -> Iterator[str]:
    """Every value has a labelled layout, which is the one that it is made in."""
    for node in view.nodes:
        if node.op == "output" or has_several(node):
            continue
        layout = info(node).layout
        if not isinstance(layout, Layout):
            yield f"{node} has no layout"
        elif (
            info(node).sharding is not None and layout.unlabelled() != view.made(node).unlabelled()
        ):
            yield f"{node} is {layout}, and is made as {view.made(node)}"


@invariant
def leaves_and_results_settled(view: View) -> Iterator[str]:
    """Leaves and results are invariant or sharded: a gradient of theirs is the whole one."""
    for placeholder, leaf in view.graph.placeholders():
        if layout_of(placeholder).varying:
            yield f"leaf `{leaf.name}` is {layout_of(placeholder)}"
    for node in view.graph.result_nodes:
        if node is not None and layout_of(node).varying:
            yield f"result `{node}` is {layout_of(node)}"


@invariant
def types_hold(view: View) -> Iterator[str]:
    """Every differentiable value has the state that its reader takes, along every axis."""
    axes = view.graph.mesh.axes
    for node, value, reshard in single_reshards(view):
        if info(node).differentiable:
            if layout_of(value) != reshard.src:
                yield f"{node}: {reshard} reads `{value}`, which is {layout_of(value)}"
            for axis in axes:
                yield from _reshard_typed(node, reshard, axis)
    for node, sharding in view.sharded:
        if info(node).differentiable and node.op == "call_function":
            for axis in axes:
                yield from _op_typed(node, sharding, axis, view.operands(node))


def _reshard_typed(node: fx.Node, reshard: Reshard, axis: Axis) -> Iterator[str]:
    """It changes nothing along other axes than its own."""
    if axis not in reshard.axes and reshard.src.state(axis) != reshard.dst.state(axis):
        yield f"{node}: {reshard} changes `{axis}` too"


def _op_typed(
    node: fx.Node, sharding: Sharding, axis: Axis, operands: list[fx.Node]
) -> Iterator[str]:
    """The states of one op's differentiable operands and results along one axis."""
    states = [layout_of(n).state(axis) if info(n).differentiable else None for n in operands]
    linear, split = sharding.linear.get(axis), sharding.factor_of(axis)
    labels = {state for state in states if state is not None and state.whole}
    if linear is not None:
        passed = all(
            (state is State.PARTIAL) == (i in linear)
            for i, state in enumerate(states)
            if state is not None
        )
        if not passed or State.INVARIANT in labels:
            passed_on = f"it passes partials of {sorted(linear)}"
            yield f"{node}: states {_shown(states)} over `{axis}`; {passed_on}"
    elif split is not None:
        for index, state in enumerate(states):
            if state is State.INVARIANT:
                yield f"{node}: operand {index} is I over `{axis}`, which splits `{split}`"
    else:
        results = {state for state in _result_states(node, axis) if state.whole}
        if len(labels | results) > 1 or State.PARTIAL in states:
            both = f"states {_shown(states)} and results {_shown(sorted(results))}"
            yield f"{node}: {both}, unsplit over `{axis}`"


def _shown(states: Iterable[State | None]) -> str:
    """`P, -, R`, with a dash for an operand without a gradient."""
    return ", ".join("-" if state is None else str(state) for state in states)


def _result_states(node: fx.Node, axis: Axis) -> list[State]:
    if not has_several(node):
        return [layout_of(node).state(axis)]
    return [layout_of(item).state(axis) for item in node.users if info(item).differentiable]
