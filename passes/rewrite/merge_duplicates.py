"""merge_duplicates: what is computed twice, in the same layout, is computed once.

It stands behind `lower`, where the maxima and sums that ops are made of can be seen: the logarithm
of a sum beside a cross-entropy has them in common, and no op that reads a value is kept from a
layout of its own, since only calls that are split alike are merged. Batch norm's running statistics
are computed first, on a detached value, and the statistics through which a gradient flows later:
then the first calls get the gradient, and what read them reads a detach. Reductions that differ in
`keepdim` alone are one reduction and a reshape. What nothing reads is removed: results of an op
that its lowering computes and the model does not ask for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import fx

from shardlang.ir.graph import ShardGraph, is_item
from shardlang.ir.node import has_several, info, set_info, tensor_of
from shardlang.ir.rewriter import Rewriter, origin_of
from shardlang.ir.views import gives_view
from shardlang.passes.invariants.duplicates import everything_read, nothing_twice
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.propagate.bind_rules import bind_node, mark_gradients
from shardlang.passes.rewrite.lower import read_forward
from shardlang.rules.call import Call
from shardlang.rules.same import COPY, DETACH, RESHAPE, Numbers, is_pure, is_transparent


@dataclass(frozen=True, slots=True)
class MergeDuplicates:
    """Compute once what several calls compute, and drop what nothing reads."""

    name: str = "merge_duplicates"
    establishes: ClassVar[tuple[Invariant, ...]] = (nothing_twice, everything_read)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Drop, merge, and drop what merging leaves over."""
        drop_unread(graph)
        merging = Merging(graph, Numbers.of_graph(graph.graph))
        for node in list(graph.graph.nodes):
            merging.visit(node)
        mark_gradients(graph)
        drop_unread(graph)
        return graph


def drop_unread(graph: ShardGraph) -> None:
    """Remove calls that nothing reads, last first."""
    edit = Rewriter(graph.graph)
    for node in reversed(list(graph.graph.nodes)):
        if not node.users and (is_pure(node) or is_item(node)):
            edit.remove(node)


@dataclass(slots=True)
class Merging:
    """Merges the calls of a graph, in order: when a call is reached, its operands are merged.

    Attributes:
        detached: the detach of every value that has one.
        read: what each visited call reads, before it is made a reshape of another one.
    """

    graph: ShardGraph
    numbers: Numbers
    detached: dict[fx.Node, fx.Node] = field(default_factory=dict)
    read: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)

    def visit(self, node: fx.Node) -> None:
        """Merge a call with those before it, or prepare it for those after it."""
        if is_transparent(node):
            self._share_detach(node)
            return
        same = self.numbers.same.get(self.numbers.of[node])
        if same is None:
            return
        like = self.numbers.shapes.get(self.numbers.shape.get(node), same)
        twin = next((one for one in (*same, *like) if flows(one)), None)
        if node is same[0] and twin is not None and not flows(node):
            self._promote(node, twin)
        self.read[node] = node.all_input_nodes
        if node is not same[0]:
            self._merge(node, same[0])
        elif node is not like[0]:
            self._reshape(node, like[0])

    def _share_detach(self, node: fx.Node) -> None:
        """Let one detach of a value stand for all."""
        first = self.detached.setdefault(node.all_input_nodes[0], node)
        if first is not node and info(node).stated is None:
            self._replace(node, first)

    def _promote(self, node: fx.Node, twin: fx.Node) -> None:
        """Let a gradient flow through a call as it flows through its twin.

        What read the call has no gradient, and reads a detach from now on.
        """
        call, other = Call(node), Call(twin)
        pairs = zip(call.operands, other.operands, strict=True)
        operands = [undetached(mine) if flows(its) else mine for mine, its in pairs]
        edit = Rewriter(self.graph.graph)
        edit.become(node, *call.with_operands(operands))
        set_info(node, replace(info(node), differentiable=True))
        for value in list(node.users) if has_several(node) else [node]:
            if is_floating(value):
                set_info(value, replace(info(value), differentiable=True))
                edit.redirect(value, self._detach(value))

    def _detach(self, value: fx.Node) -> fx.Node:
        """The detach of a value."""
        if value not in self.detached:
            edit = Rewriter(self.graph.graph)
            record = replace(origin_of(value), value=info(value).value)
            made = edit.add(DETACH, (value,), record=record, before=value.next)
            bind_node(made)
            read_forward(made, value)
            self.detached[value] = made
        return self.detached[value]

    def _source(self, node: fx.Node, first: fx.Node) -> fx.Node | None:
        """What a call may be replaced by; None where another gradient flows through the first."""
        if not flows(node):
            return self._detach(first) if flows(first) and not has_several(node) else first
        return first if self.read[node] == self.read[first] else None

    def _merge(self, node: fx.Node, first: fx.Node) -> None:
        source = self._source(node, first)
        if source is not None:
            self._replace(node, source)

    def _reshape(self, node: fx.Node, first: fx.Node) -> None:
        """Make a reduction a reshape of one that keeps its dims, or does not."""
        source = self._source(node, first)
        if source is not None:
            shape = list(tensor_of(node).shape)
            Rewriter(self.graph.graph).become(node, RESHAPE, (source, shape))
            bind_node(node)
            read_forward(node, node)
            if self.graph.output in node.users:
                self._copy_result(node)

    def _copy_result(self, node: fx.Node) -> None:
        """Return a copy of what has become a view of another value."""
        edit, known = Rewriter(self.graph.graph), info(node)
        record = replace(origin_of(node), value=known.value, differentiable=known.differentiable)
        made = edit.add(COPY, (node,), record=record, before=node.next)
        bind_node(made)
        read_forward(made, node)
        edit.redirect(node, made, lambda user: user is self.graph.output)

    def _replace(self, node: fx.Node, source: fx.Node) -> None:
        """Let the readers of a call read another one; a result stays a tensor of its own.

        Unless it is a view, which lies where the same view lies.
        """
        edit, output = Rewriter(self.graph.graph), self.graph.output
        apart = not gives_view(node.target)
        edit.redirect(node, source, lambda user: user is not output or not apart)
        if output in node.users:
            edit.become(node, COPY, (source,))
            bind_node(node)
            read_forward(node, node)


def flows(node: fx.Node) -> bool:
    """Whether a gradient flows through a value."""
    return info(node).differentiable


def is_floating(node: fx.Node) -> bool:
    """Whether a value can have a gradient."""
    tensor = tensor_of(node)
    return tensor.is_floating_point() or tensor.is_complex()


def undetached(node: fx.Node) -> fx.Node:
    """A value before it was detached."""
    while node.target is DETACH:
        node = node.all_input_nodes[0]
    return node
