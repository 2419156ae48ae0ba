"""type_gradients: which whole values are invariant (`I`) and which replicated (`R`).

Along each axis the choice is a minimum s-t cut. Every whole value has a label node and a copy that
its consumers read; source side is `I`, sink side `R`. A cut edge is a backward collective: label to
copy is the all-reduce of a shared `vary`; source to label what an all-reduce or a gather pays for
giving an `R`; copy to sink the all-gather after a slice of an `I`. Consumers that need `R` tie the
copy to the sink. Ties go to `I`. The cut is exact along one axis; coincident varies of several axes
then become one.

Invariants after the pass: `passes/invariants/gradients.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import networkx as nx
from networkx.algorithms.flow import boykov_kolmogorov
from torch import fx

from shardlang.cost.held import value_bytes
from shardlang.cost.ring import ring_limit
from shardlang.ir.graph import (
    ShardGraph,
    is_item,
    is_step,
    producer,
    result_layout,
    sharding_of,
    step_of,
)
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.node import NodeInfo, has_several, info, layout_of, set_info
from shardlang.ir.program import apply_step
from shardlang.ir.reshard import Reshard, gradient_kind
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.gradients import (
    layouts_labelled,
    leaves_and_results_settled,
    types_hold,
)
from shardlang.passes.invariants.invariant import Invariant
from shardlang.rules.call import Call

SOURCE, SINK = "I", "R"
UNIT = 2**16
"""Capacity of one byte; smaller amounts break ties: a `vary` rather stands on a leaf than later,
where the gradients of many leaves can be sent together."""

Vertex = str | tuple[str, fx.Node]


@dataclass(frozen=True, slots=True)
class TypeGradients:
    """Label every value and insert the `vary` and `settle` steps that the labels ask for."""

    name: str = "type_gradients"
    establishes: ClassVar[tuple[Invariant, ...]] = (
        layouts_labelled, leaves_and_results_settled, types_hold,
    )  # fmt: skip
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Label along every axis, then emit."""
        labels = {axis: replicated(graph, axis) for axis in graph.mesh.axes}
        Emission(graph, labels).run()
        return graph


def label_vertex(node: fx.Node) -> Vertex:
    """The label of a value; results of one op share it."""
    return "label", producer(node)[0]


def copy_vertex(node: fx.Node) -> Vertex:
    """What the consumers of a value read."""
    return "copy", node


def is_whole(node: fx.Node, axis: Axis) -> bool:
    """Whether a value has a label along the axis: a gradient, and neither split nor partial."""
    if not info(node).differentiable or has_several(node):
        return False
    layout = result_layout(node)
    return axis not in layout.partial and layout.dim_of(axis) is None


def replicated(graph: ShardGraph, axis: Axis) -> set[Vertex]:
    """The vertices on the `R` side of the minimum cut along one axis."""
    net = nx.DiGraph()
    net.add_nodes_from([SOURCE, SINK])
    for node in graph.graph.nodes:
        if node.op == "output" or not info(node).differentiable:
            continue
        if is_whole(node, axis):
            _add_value(net, node, axis)
        _add_uses(net, node, axis)
    _, (_, sink_side) = nx.minimum_cut(net, SOURCE, SINK, flow_func=boykov_kolmogorov)
    return set(sink_side) - {SINK}


def _add_value(net: nx.DiGraph, node: fx.Node, axis: Axis) -> None:
    """The edges of one whole value."""
    label, copy = label_vertex(node), copy_vertex(node)
    size = value_bytes(node) * UNIT
    leaf = node.op == "placeholder"
    vary = ring_limit(gradient_kind(SOURCE, SINK), size)
    net.add_edge(label, copy, capacity=vary + (not leaf))
    if leaf:
        net.add_edge(SOURCE, label)
    elif _beside_split(node, axis):
        net.add_edge(label, SINK)
    elif is_step(node) and axis in step_of(node).axes:
        before = step_of(node).src.state(axis)
        if before in "PS":
            net.add_edge(SOURCE, label, capacity=ring_limit(gradient_kind(before, SINK), size))


def _beside_split(node: fx.Node, axis: Axis) -> bool:
    """Whether the value is a whole result of an op that is split, whose operands are `R`."""
    source = producer(node)[0]
    if info(source).sharding is None:
        return False
    sharding = sharding_of(source)
    return axis in sharding.linear or sharding.factor_of(axis) is not None


def _add_uses(net: nx.DiGraph, node: fx.Node, axis: Axis) -> None:
    """The edges from what a node reads to the node."""
    for operand in set(node.all_input_nodes):
        if not is_whole(operand, axis) or is_item(node):
            continue
        need = needed_label(node, operand, axis)
        copy = copy_vertex(operand)
        if need == "R":
            net.add_edge(copy, SINK)
        elif need == "share":
            net.add_edge(copy, label_vertex(node))
        elif need == "slice":
            size = ring_limit(gradient_kind(SOURCE, "S"), value_bytes(operand) * UNIT)
            had = net.get_edge_data(copy, SINK)
            if had is None:
                net.add_edge(copy, SINK, capacity=size)
            elif "capacity" in had:
                had["capacity"] += size


def needed_label(node: fx.Node, operand: fx.Node, axis: Axis) -> str:
    """What a reader asks of a whole operand along an axis.

    `R`: it must be replicated. `share`: it has the reader's own label. `slice`: either, at a price.
    `free`: either.
    """
    if node.op == "output":
        return "I"
    if is_step(node):
        step = step_of(node)
        if axis not in step.axes:
            return "share"
        return {"S": "slice", "P": "free"}.get(step.dst.state(axis), "share")
    sharding = sharding_of(node)
    split = axis in sharding.linear or sharding.factor_of(axis) is not None
    return "R" if split else "share"


class Emission:
    """Writes the labels into the graph: `vary` and `settle` steps, labelled layouts."""

    def __init__(self, graph: ShardGraph, labels: dict[Axis, set[Vertex]]) -> None:
        self.graph, self.labels = graph, labels
        self.versions: dict[tuple[fx.Node, frozenset[Axis]], fx.Node] = {}

    def run(self) -> None:
        """Visit every node in order; operands are labelled before their readers."""
        for node in list(self.graph.graph.nodes):
            if node.op == "output":
                self._output(node)
            elif is_step(node):
                self._step(node)
            elif is_item(node):
                self._label(node)
            else:
                self._op(node)

    def varying(self, node: fx.Node) -> frozenset[Axis]:
        """Axes along which a value is `R` where it is made."""
        return frozenset(
            axis
            for axis, sink in self.labels.items()
            if is_whole(node, axis) and label_vertex(node) in sink
        )

    def wanted(self, node: fx.Node, operand: fx.Node) -> frozenset[Axis]:
        """Axes along which a reader needs the operand `R`."""
        found = set()
        for axis, sink in self.labels.items():
            if not is_whole(operand, axis):
                continue
            need = needed_label(node, operand, axis)
            made = label_vertex(operand) in sink
            is_r = {
                "R": True,
                "I": False,
                "share": label_vertex(node) in sink if is_whole_reader(node, axis) else made,
                "slice": copy_vertex(operand) in sink or made,
                "free": made,
            }[need]
            if is_r:
                found.add(axis)
        return frozenset(found)

    def _label(self, node: fx.Node) -> None:
        if has_several(node):
            return
        layout = result_layout(node)
        labelled = Layout(layout.dims, layout.partial, self.varying(node))
        set_info(node, replace(info(node), layout=labelled))

    def _op(self, node: fx.Node) -> None:
        if node.op == "call_function":
            call = Call(node)
            fed = [self.read(node, operand) for operand in call.operands]
            if fed != call.operands:
                Rewriter(node.graph).become(node, *call.with_operands(fed))
        self._label(node)

    def _step(self, node: fx.Node) -> None:
        value, step = node.args
        assert isinstance(value, fx.Node) and isinstance(step, Reshard)
        fed = self.read(node, value)
        self._label(node)
        src = layout_of(fed)
        node.args = (fed, Reshard(step.axes, src, layout_of(node), step.reduce))

    def _output(self, node: fx.Node) -> None:
        done = [v if v is None else self.read(node, v) for v in self.graph.result_nodes]
        node.args = (tuple(done),)

    def read(self, node: fx.Node, operand: fx.Node) -> fx.Node:
        """The operand with the labels that the reader needs."""
        if not info(operand).differentiable or (
            node.op != "output" and not info(node).differentiable
        ):
            return operand
        want = self.wanted(node, operand)
        return self.version(operand, want, node)

    def version(self, value: fx.Node, want: frozenset[Axis], before: fx.Node) -> fx.Node:
        """The value with other labels, from the nearest version at hand."""
        made = self.varying(value)
        if want == made:
            return value
        if (value, want) in self.versions:
            return self.versions[value, want]
        between = [axes for (v, axes) in self.versions if v is value and made < axes < want]
        base = self.versions[value, max(between, key=len)] if between else value
        have = max(between, key=len) if between else made
        current, labels = base, have
        for change, target in ((want - have, have | want), (have - want, want)):
            if change:
                current = self._relabel(
                    current, labels, frozenset(target), tuple(sorted(change)), before
                )
                labels = frozenset(target)
        self.versions[value, want] = current
        return current

    def _relabel(
        self,
        value: fx.Node,
        have: frozenset[Axis],
        want: frozenset[Axis],
        axes: tuple[Axis, ...],
        before: fx.Node,
    ) -> fx.Node:
        layout = result_layout(value)
        src = Layout(layout.dims, layout.partial, have)
        dst = Layout(layout.dims, layout.partial, want)
        step = Reshard(axes, src, dst)
        record = NodeInfo(
            info(value).value,
            info(before).module if before.op != "output" else "",
            info(before).source,
            differentiable=True,
            layout=dst,
            reader=before.name,
        )
        edit = Rewriter(self.graph.graph)
        return edit.add(apply_step, (value, step), record=record, before=before, name=step.kind)


def is_whole_reader(node: fx.Node, axis: Axis) -> bool:
    """Whether a reader has a label of its own along the axis."""
    if is_step(node):
        return is_whole(node, axis)
    return True
