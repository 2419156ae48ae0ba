"""Drop what has no effect on values, and bring spellings of the same operator to one form."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from shardlang.ir.compat import OpOverload
from shardlang.ir.graph import ShardGraph
from shardlang.ir.leaf import ResultKind
from shardlang.ir.node import info, tensor_of
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.traced import spelled_one_way
from shardlang.passes.normalize.copies import (
    DROPOUTS,
    is_neutral,
    is_off,
    needed_copies,
    same_type,
)
from shardlang.passes.normalize.fx_edit import gradient_carriers, has_argument, is_op
from shardlang.rules.call import Call

aten = torch.ops.aten
CPU = torch.device("cpu")

_PLACEMENT = ("pin_memory", "layout", "memory_format")
_COPIES = [
    aten.alias,
    aten.clone,
    aten.contiguous,
    aten.lift,
    aten.lift_fresh,
    aten.lift_fresh_copy,
    aten.positive,
    aten.conj,
    aten.resolve_conj,
    aten.resolve_neg,
]
_RESHAPES = [
    aten.view.default,
    aten.reshape,
    aten._unsafe_view,
    aten.view_as,
    aten.reshape_as,
    aten.flatten,
    aten.unflatten,
]
_NEW_FACTORIES = {
    aten.new_ones: aten.ones.default,
    aten.new_zeros: aten.zeros.default,
    aten.new_full: aten.full.default,
    aten.new_empty: aten.zeros.default,
}


@dataclass(frozen=True, slots=True)
class Simplify:
    """Drop what has no effect on values, and spell every operator in one way."""

    name: str = "simplify"
    establishes: ClassVar[tuple[Invariant, ...]] = (spelled_one_way,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Simplify all operators, and drop those that nothing reads."""
        written = {one.name for one in graph.results if one.kind is ResultKind.MUTATION}
        simplify(graph.graph, written)
        return graph


def simplify(graph: fx.Graph, written: Collection[str] = ()) -> None:
    """Simplify `graph` in place.

    Afterwards there are no copies but those of what is written, no switched-off dropouts or
    redundant casts; reshapes are all `aten.reshape` and casts all `aten.to.dtype`, sizes are
    explicit; factories name their dtype, and no device but the CPU.

    Args:
        written: the names of the placeholders whose tensors the call writes.
    """
    edit, needed = Rewriter(graph), needed_copies(graph, written)
    for node in list(graph.nodes):
        if node in needed:
            _become(edit, node, aten.clone.default, node.args[0])
            continue
        for operators, rule in _RULES:
            if is_op(node, operators):
                rule(edit, node)
                break
        if node.op == "call_function":
            _drop_placement(node)
            _name_dtype(node)
    _drop_detaches(edit)
    graph.eliminate_dead_code()


def _forward(edit: Rewriter, node: fx.Node) -> None:
    """Replace a node by its operand."""
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    edit.replace(node, operand)


def _dropout(edit: Rewriter, node: fx.Node) -> None:
    if is_off(node):
        _forward(edit, node)


def _cast(edit: Rewriter, node: fx.Node) -> None:
    """A cast becomes `aten.to.dtype`, or nothing where the type stays."""
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    if same_type(node):
        edit.replace(node, operand)
    else:
        _become(edit, node, aten.to.dtype, operand, tensor_of(node).dtype)


def _to_shape(op: OpOverload) -> Callable[[Rewriter, fx.Node], None]:
    """A change of shape becomes a call of `op` with all sizes, or nothing where the shape stays."""

    def rule(edit: Rewriter, node: fx.Node) -> None:
        operand = node.args[0]
        assert isinstance(operand, fx.Node)
        if tensor_of(operand).shape == tensor_of(node).shape:
            edit.replace(node, operand)
        else:
            _become(edit, node, op, operand, list(tensor_of(node).shape))

    return rule


def _slice(edit: Rewriter, node: fx.Node) -> None:
    """Drop a slice of everything; give others explicit, non-negative bounds."""
    call = Call(node)
    operand, dim = call.operand("self"), call.dim()
    bounds = slice(call["start"], call["end"], call["step"])
    start, end, step = bounds.indices(tensor_of(operand).shape[dim])
    if tensor_of(operand).shape == tensor_of(node).shape:
        edit.replace(node, operand)
    elif step == 1:
        _become(edit, node, aten.slice.Tensor, operand, dim, start, end)
    else:
        _become(edit, node, aten.slice.Tensor, operand, dim, start, end, step)


def _detach_in_place(edit: Rewriter, node: fx.Node) -> None:
    node.target = aten.detach.default


def _rms_norm(edit: Rewriter, node: fx.Node) -> None:
    """Write out the default epsilon, which depends on the dtype."""
    call = Call(node)
    if call["eps"] is None:
        eps = torch.finfo(tensor_of(node).dtype).eps
        node.args = (*node.args[:2], call.optional("weight"), eps)


def _new_factory(edit: Rewriter, node: fx.Node) -> None:
    """A factory that takes only its dtype from a tensor becomes one without operands."""
    dtype = tensor_of(node).dtype
    for packet, factory in _NEW_FACTORIES.items():
        if is_op(node, [packet]):
            node.target, node.args = factory, node.args[1:]
    node.kwargs = {"dtype": dtype, "device": CPU}


def _empty(edit: Rewriter, node: fx.Node) -> None:
    """Uninitialized memory becomes zeros, so that a program has one meaning."""
    like = is_op(node, [aten.empty_like])
    dtype = tensor_of(node).dtype
    node.target = aten.zeros_like.default if like else aten.zeros.default
    node.args, node.kwargs = node.args[:1], {"dtype": dtype, "device": CPU}


def _conj(edit: Rewriter, node: fx.Node) -> None:
    """A conjugate is computed at once: what resolves a pending one is a copy like any other."""
    _become(edit, node, aten.conj_physical.default, node.args[0])


def _negative(edit: Rewriter, node: fx.Node) -> None:
    _become(edit, node, aten.neg.default, node.args[0])


def _unit(edit: Rewriter, node: fx.Node) -> None:
    """Drop a product with one, and a sum of integers with zero."""
    if is_neutral(node):
        _forward(edit, node)


def _fill(edit: Rewriter, node: fx.Node) -> None:
    """Fill with a number where the filling tensor is a known constant."""
    other = node.args[1]
    if isinstance(other, fx.Node) and info(other).constant is not None:
        _become(edit, node, aten.fill.Scalar, node.args[0], info(other).constant)


def _become(edit: Rewriter, node: fx.Node, target: OpOverload, *args: object) -> None:
    """Turn a call into another with the same result, under the same name."""
    edit.become(node, target, args)
    edit.infer(node)


def _drop_placement(node: fx.Node) -> None:
    """Remove memory options, and let every device argument be the CPU."""
    kwargs = {k: v for k, v in node.kwargs.items() if k not in _PLACEMENT}
    if "device" in kwargs:
        kwargs["device"] = CPU
    node.kwargs = kwargs


def _name_dtype(node: fx.Node) -> None:
    """Let a factory name its dtype: the default one may be another where the program runs."""
    value = info(node).value
    makes = not node.all_input_nodes and isinstance(value, torch.Tensor)
    if makes and has_argument(node, "dtype"):
        node.kwargs = {**node.kwargs, "dtype": tensor_of(node).dtype}


def _drop_detaches(edit: Rewriter) -> None:
    """Remove detaches of values that carry no gradient."""
    carriers = gradient_carriers(edit.graph)
    for node in list(edit.graph.nodes):
        if is_op(node, [aten.detach]) and node.args[0] not in carriers:
            _forward(edit, node)


_RULES: tuple[tuple[Sequence[object], Callable[[Rewriter, fx.Node], None]], ...] = (
    (_COPIES, _forward),
    (DROPOUTS, _dropout),
    ([aten.to, aten._to_copy, aten.type_as], _cast),
    (_RESHAPES, _to_shape(aten.reshape.default)),
    ([aten.expand, aten.expand_as], _to_shape(aten.expand.default)),
    ([aten.slice], _slice),
    ([aten.detach_], _detach_in_place),
    ([aten._conj], _conj),
    ([aten._neg_view], _negative),
    ([aten.rms_norm], _rms_norm),
    ([aten.new_ones, aten.new_zeros, aten.new_full, aten.new_empty], _new_factory),
    ([aten.empty, aten.empty_like], _empty),
    ([aten.add, aten.sub, aten.mul, aten.div], _unit),
    ([aten.fill], _fill),
)
