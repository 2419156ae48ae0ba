"""type_gradients: which whole values are invariant (`I`) and which replicated (`R`).

Along each axis the choice is a minimum cut (`label_cut`). Coincident varies of several axes then
become one.

Invariants after the pass: `passes/invariants/gradients.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from shardlang.ir.graph import (
    ShardGraph,
    is_item,
    is_reshard,
    result_layout,
)
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.node import NodeInfo, has_several, info, layout_of, set_info
from shardlang.ir.program import apply_reshard
from shardlang.ir.reshard import Reshard
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.gradients import (
    layouts_labelled,
    leaves_and_results_settled,
    types_hold,
)
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.rewrite.label_cut import (
    Need,
    Vertex,
    copy_vertex,
    is_whole,
    label_vertex,
    needed_label,
    replicated,
)
from shardlang.rules.call import Call


@dataclass(frozen=True, slots=True)
class TypeGradients:
    """Label every value and insert the `vary` and `settle` reshards that the labels ask for."""

    name: str = "type_gradients"
    establishes: ClassVar[tuple[Invariant, ...]] = (
        layouts_labelled, leaves_and_results_settled, types_hold,
    )  # fmt: skip
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Label along every axis, then emit."""
        labels: dict[Axis, set[Vertex]] = {}
        for axis in graph.mesh.axes:
            labels[axis] = replicated(graph, axis, labels)
        Emission(graph, labels).run()
        return graph


class Emission:
    """Writes the labels into the graph: `vary` and `settle` reshards, labelled layouts."""

    def __init__(self, graph: ShardGraph, labels: dict[Axis, set[Vertex]]) -> None:
        self.graph, self.labels = graph, labels
        self.versions: dict[tuple[fx.Node, frozenset[Axis]], fx.Node] = {}

    def run(self) -> None:
        """Visit every node in order; operands are labelled before their readers."""
        for node in list(self.graph.graph.nodes):
            if node.op == "output":
                self._output(node)
            elif is_reshard(node):
                self._reshard(node)
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
            need = needed_label(node, axis)
            made = label_vertex(operand) in sink
            is_r = {
                Need.REPLICATED: True,
                Need.INVARIANT: False,
                Need.SHARED: label_vertex(node) in sink if is_whole_reader(node, axis) else made,
                Need.SLICED: copy_vertex(operand) in sink or made,
                Need.NOTHING: made,
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

    def _reshard(self, node: fx.Node) -> None:
        value, reshard = node.args
        assert isinstance(value, fx.Node) and isinstance(reshard, Reshard)
        fed = self.read(node, value)
        self._label(node)
        src = layout_of(fed)
        node.args = (fed, Reshard(reshard.axes, src, layout_of(node), reshard.reduce))

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
        reshard = Reshard(axes, src, dst)
        record = NodeInfo(
            info(value).value,
            info(before).module if before.op != "output" else "",
            info(before).source,
            differentiable=True,
            layout=dst,
            reader=before.name,
        )
        edit = Rewriter(self.graph.graph)
        name = reshard.kind.value
        return edit.add(apply_reshard, (value, reshard), record=record, before=before, name=name)


def is_whole_reader(node: fx.Node, axis: Axis) -> bool:
    """Whether a reader has a label of its own along the axis."""
    if is_reshard(node):
        return is_whole(node, axis)
    return True
