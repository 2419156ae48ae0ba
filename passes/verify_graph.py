"""verify_graph: the invariants between passes, checked after every pass.

These checks know the type system and nothing of how the passes reach it. A failure is a bug of
ours, so it is an assertion, with the node named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import fx

from shardlang.ir.graph import ShardGraph, home, is_item, is_step, sharding_of, step_of
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info, layout_of, tensor_of
from shardlang.ir.program import apply_steps
from shardlang.ir.reshard import Reshard
from shardlang.passes.experts.verify_routes import orders_agree
from shardlang.rules.call import Call, shape_of


class InvariantError(AssertionError):
    """A pass broke an invariant of the graph."""


def verify_graph(graph: ShardGraph, after: str) -> None:
    """Check what must hold after a pass.

    Raises:
        InvariantError: something does not hold.
    """
    for check in CHECKS.get(after, ()):
        for problem in check(graph):
            raise InvariantError(f"after {after}: {problem}")


def rules_fit(graph: ShardGraph) -> Iterator[str]:
    """Every op has a rule whose dims are those of its tensors."""
    for node in _ops(graph):
        sharding = sharding_of(node)
        shapes = [shape_of(tensor_of(n)) for n in _operands(node)]
        for index, shape in enumerate(shapes):
            if sharding.operand(index).shape != shape:
                yield f"{node}: operand {index} is {shape}, its rule says {sharding.operand(index)}"


def one_place_per_axis(graph: ShardGraph) -> Iterator[str]:
    """An axis splits one factor of an op (or factors that stand side by side), and no whole one."""
    for node in _ops(graph):
        sharding = sharding_of(node)
        linked = {name: group for group in sharding.rule.linked for name in group}
        seen: dict[Axis, str] = {}
        for name, dim in sharding.factors.items():
            if dim.axes and name in sharding.rule.whole:
                yield f"{node}: whole factor `{name}` is split"
            for axis in dim.axes:
                other = seen.setdefault(axis, name)
                if other not in linked.get(name, (name,)):
                    yield f"{node}: `{axis}` splits both `{other}` and `{name}`"


def operands_in_place(graph: ShardGraph) -> Iterator[str]:
    """Every operand has the layout that its op needs; every step starts from where its value is."""
    for node in graph.graph.nodes:
        if is_step(node) and node.target is not apply_steps:
            value = node.args[0]
            assert isinstance(value, fx.Node)
            if home(value).unlabelled() != step_of(node).src.unlabelled():
                yield f"{node}: {step_of(node)} starts from {home(value)}"
        elif info(node).sharding is not None and not is_item(node):
            for index, operand in enumerate(_operands(node)):
                if home(operand).unlabelled() != sharding_of(node).operand(index):
                    want = sharding_of(node).operand(index)
                    yield f"{node}: operand {index} `{operand}` is {home(operand)}, not {want}"


def results_settled(graph: ShardGraph) -> Iterator[str]:
    """No result is partial."""
    for node in graph.result_nodes:
        if node is not None and home(node).partial:
            yield f"result `{node}` is {home(node)}"


def types_hold(graph: ShardGraph) -> Iterator[str]:
    """Every differentiable value has the state that its reader must have, along every axis."""
    for node, leaf in graph.placeholders():
        if layout_of(node).varying:
            yield f"leaf `{leaf.name}` is {layout_of(node)}"
    for result in graph.result_nodes:
        if result is not None and layout_of(result).varying:
            yield f"result `{result}` is {layout_of(result)}"
    for node in graph.graph.nodes:
        if node.target is apply_steps or not info(node).differentiable:
            continue
        if is_step(node):
            yield from _step_typed(node, step_of(node), graph.mesh.axes)
        elif info(node).sharding is not None and node.op == "call_function":
            for axis in graph.mesh.axes:
                yield from _op_typed(node, axis)


def _step_typed(node: fx.Node, step: Reshard, axes: tuple[Axis, ...]) -> Iterator[str]:
    """It reads what it starts from, and changes nothing along other axes than its own."""
    value = node.args[0]
    assert isinstance(value, fx.Node)
    if layout_of(value) != step.src:
        yield f"{node}: {step} reads `{value}`, which is {layout_of(value)}"
    for axis in axes:
        if axis not in step.axes and step.src.state(axis) != step.dst.state(axis):
            yield f"{node}: {step} changes `{axis}` too"


def _op_typed(node: fx.Node, axis: Axis) -> Iterator[str]:
    """The states of one op's differentiable operands and results along one axis."""
    sharding = sharding_of(node)
    operands = _operands(node)
    states = [_layout(n).state(axis) if info(n).differentiable else "-" for n in operands]
    split = sharding.factor_of(axis)
    linear = sharding.linear.get(axis)
    labels = {s for s in states if s in "IR"}
    if linear is not None:
        if (
            any((s == "P") != (i in linear) for i, s in enumerate(states) if s != "-")
            or "I" in labels
        ):
            yield f"{node}: states {states} over `{axis}`; it passes partials of {linear}"
        return
    if split is not None:
        for index, state in enumerate(states):
            if state == "I":
                yield f"{node}: operand {index} is I over `{axis}`, which splits `{split}`"
        return
    results = {s for s in _result_states(node, axis) if s in "IR"}
    if len(labels | results) > 1 or "P" in states:
        yield f"{node}: states {states} and results {results} over `{axis}` of an unsplit op"


def _result_states(node: fx.Node, axis: Axis) -> list[str]:
    if info(node).layout is not None:
        return [layout_of(node).state(axis)]
    items = [
        user for user in node.users if info(user).layout is not None and info(user).differentiable
    ]
    return [layout_of(item).state(axis) for item in items]


def _layout(node: fx.Node) -> Layout:
    layout = layout_of(node)
    assert isinstance(layout, Layout)
    return layout


def _ops(graph: ShardGraph) -> Iterator[fx.Node]:
    return (
        n
        for n in graph.graph.nodes
        if info(n).sharding is not None and n.op == "call_function" and not is_step(n)
    )


def _operands(node: fx.Node) -> list[fx.Node]:
    return [] if node.op == "placeholder" else Call(node).operands


Check = Callable[[ShardGraph], Iterator[str]]

CHECKS: dict[str, tuple[Check, ...]] = {
    "bind_rules": (rules_fit,),
    "propagate": (rules_fit, one_place_per_axis),
    "lower": (rules_fit, one_place_per_axis),
    "route_rows": (rules_fit, one_place_per_axis, orders_agree),
    "insert_reshards": (one_place_per_axis, operands_in_place, results_settled),
    "type_gradients": (operands_in_place, results_settled, types_hold),
    "fuse_collectives": (results_settled, types_hold),
}
"""Pass name to the checks that run after it."""
