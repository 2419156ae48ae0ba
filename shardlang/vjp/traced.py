"""The ops of one call: what a trace has written down, and which of it is forward or backward."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.utils._pytree as pytree
from torch import fx

from shardlang.ir.compat import OpOverload
from shardlang.ir.draws import draws
from shardlang.ir.step import Operand
from shardlang.ir.views import gives_view
from shardlang.vjp.fewer import compute_less
from shardlang.vjp.fold_views import fold_views
from shardlang.vjp.kernels import lay_out_operands
from shardlang.vjp.op_call import NotTraced, OpCall
from shardlang.vjp.op_tape import returned_by

Nodes = list[fx.Node | None]
"""Nodes by place; None where there is none."""

aten = torch.ops.aten
_TAKES_DENSE = (
    aten.view_as_complex.default, aten.view.dtype,
    aten.native_group_norm.default, aten.native_group_norm_backward.default,
    aten._pdist_forward.default, aten._pdist_backward.default,
)  # fmt: skip
"""Ops that fail on tensors which are not dense, or read them as if they were: the fake shards are.

A group norm of torch 2.13 reads a strided weight as the numbers that lie behind the first.
"""

_VIEWS = (aten.view.default, aten._unsafe_view.default)
"""Reshapes that take a tensor which is dense, as the fake shards are; the shards may be none."""


@dataclass(slots=True)
class Traced:
    """The ops of a call.

    Attributes:
        operands: placeholders, one per slot.
        cotangents: placeholders, one per given result.
        results: the node of every tensor that the op gives; None for a None among them.
        gradients: by wanted slot, the node of the gradient; None where there is none.
        forward: the ops that the results need, in order.
        backward: all others, in order.
        whole: the op itself is the forward; the backward reads its operands and results alone.
        several: the op gives several results, or a tuple of one.
    """

    operands: list[fx.Node]
    cotangents: list[fx.Node]
    results: list[fx.Node | None]
    gradients: dict[int, fx.Node | None]
    forward: list[fx.Node] = field(default_factory=list)
    backward: list[fx.Node] = field(default_factory=list)
    several: bool = False
    whole: bool = False

    def given(self) -> list[fx.Node]:
        """What the ops are given."""
        results = [r for r in self.results if r is not None] if self.whole else []
        return [*self.operands, *self.cotangents, *results]

    def nodes(self) -> list[fx.Node]:
        """All ops."""
        return [*self.forward, *self.backward]


def written_out(graph: fx.Graph, call: OpCall, several: bool) -> Traced:
    """The ops of a trace, those of the forward apart from those of the backward.

    Raises:
        NotTraced: an op would be another one in another run.
    """
    if any(_is_of_one_run(node) or _is_of_one_device(node, call) for node in graph.nodes):
        raise NotTraced
    for node in list(graph.nodes):
        if node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in _VIEWS:
            node.target = aten.reshape.default
        elif node.target in _TAKES_DENSE:
            _read_dense(graph, node)
    fold_views(graph)
    if call.device is not None:
        lay_out_operands(graph)
    given = graph.find_nodes(op="placeholder")
    if not several:
        _keep(graph, call, given)
    compute_less(graph, _sources([r for r in _returned(graph, call)[0] if r is not None]))
    results, gradients = _returned(graph, call)
    forward = _sources([r for r in results if r is not None])
    inner = [n for n in graph.nodes if n.op == "call_function"]
    backward = _sources([g for g in gradients if g is not None])
    forward |= {n for n in backward if n.target is operator.getitem and n.args[0] in forward}
    count = len(call.shards)
    made = Traced(
        given[:count], given[count:], results,
        dict(zip(call.wanted, gradients, strict=True)),
        [n for n in inner if n in forward],
        [n for n in inner if n in backward and n not in forward],
        several,
    )  # fmt: skip
    return _as_whole(made)


def _read_dense(graph: fx.Graph, node: fx.Node) -> None:
    """Let a call read its operands in memory that has no gaps; those that lie so are not copied."""
    for operand in node.all_input_nodes:
        with graph.inserting_before(node):
            dense = graph.call_function(aten.contiguous.default, (operand,))
        node.replace_input_with(operand, dense)


def _returned(graph: fx.Graph, call: OpCall) -> tuple[Nodes, Nodes]:
    """The results of a trace, and its gradients."""
    flat = returned_by(graph)
    count = len(flat) - len(call.wanted)
    return flat[:count], flat[count:]


def _as_whole(traced: Traced) -> Traced:
    """Leave the forward to the op itself where the backward reads no more than views inside it.

    The backward then makes these views for itself, and the values that it reads of the forward are
    those that the program has anyway.
    """
    results = [r for r in traced.results if r is not None]
    once = len({*results, *traced.operands}) == len(results) + len(traced.operands)
    if not once or not traced.forward:
        return traced
    ends = [g for g in traced.gradients.values() if g is not None]
    read = _sources(ends, {*traced.operands, *traced.cotangents, *results})
    backward = [n for n in traced.nodes() if n in read and n not in results]
    if any(n in traced.forward and not gives_view(n.target) for n in backward):
        return traced
    return replace(traced, forward=[], backward=backward, whole=True)


def _keep(graph: fx.Graph, call: OpCall, given: Sequence[fx.Node]) -> None:
    """Keep an op that gives back what it gets: it may copy a tensor that is not dense."""
    first, *gradients = returned_by(graph)
    if first not in given[: len(call.shards)] or not isinstance(call.target, OpOverload):
        return
    args, kwargs = pytree.tree_map_only(Operand, lambda o: given[o.index], (call.args, call.kwargs))
    output = graph.output_node()
    with graph.inserting_before(output):
        made = graph.create_node("call_function", call.target, args, kwargs)
    output.args = ((made, *gradients),)


_BY_MEMORY = (torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_scatter.default)
"""Ops whose arguments say how their operand lies in memory, which is otherwise in another run."""


def _is_of_one_run(node: fx.Node) -> bool:
    """Whether an op draws, or its arguments say how an operand lies in memory."""
    return draws(node) or node.target in _BY_MEMORY


def _is_of_one_device(node: fx.Node, call: OpCall) -> bool:
    """Whether an op is for a CPU alone, in a call of which all devices make the same ops."""
    name = str(node.target)
    return call.device is None and ("_for_cpu" in name or "mkldnn" in name)


def _sources(ends: Sequence[fx.Node], given: Collection[fx.Node] = ()) -> set[fx.Node]:
    """What some nodes are computed from, they included; nothing further back than what is given."""
    seen: set[fx.Node] = set()
    todo = list(ends)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += node.all_input_nodes if node not in given else ()
    return seen
