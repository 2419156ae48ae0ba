"""Raising a traced program to float64, internal casts included."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx
from torch.fx.node import Argument, map_aggregate

from shardlang.ir.node import info, set_info, tensor_of
from shardlang.ir.rewriter import Rewriter, copy_graph, origin_of
from shardlang.passes.normalize.fx_edit import is_op

aten = torch.ops.aten
_BITS = [aten.view.dtype]

_RAISED = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


def raised_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for a real floating type, complex128 for a complex one, others unchanged."""
    return _RAISED.get(dtype, dtype)


def raise_to_float64(graph: fx.Graph) -> fx.Graph:
    """A copy of `graph` whose every floating value is float64.

    Dtype arguments of casts, factories and reductions are raised alike, so nothing is rounded to a
    lower precision on the way. An op that makes a floating tensor of the default type from integers
    and numbers (`arange / 2`, `where(mask, 1.0, 0.0)`) is followed by a cast. An op that looks at
    the bits of a number, or that float64 does not fit, works at its own type. Node names stay.
    """
    raised, env = copy_graph(graph)
    edit = Rewriter(raised)
    for old, node in env.items():
        if node.op == "placeholder":
            set_info(node, replace(info(old), value=_raised(tensor_of(old), edit)))
        elif node.op == "call_function":
            _raise_call(edit, node, old)
    raised.lint()
    return raised


def _raise_call(edit: Rewriter, node: fx.Node, old: fx.Node) -> None:
    """Raise one call, whose operands are raised already."""
    if is_op(node, _BITS):
        _at_own_type(edit, node, old)
    else:
        node.args = map_aggregate(node.args, _raised_argument)
        node.kwargs = map_aggregate(node.kwargs, _raised_argument)
        edit.infer(node)
    value = info(node).value
    if isinstance(value, torch.Tensor) and value.dtype != raised_dtype(value.dtype):
        _cast_behind(edit, node)


def _at_own_type(edit: Rewriter, node: fx.Node, old: fx.Node) -> None:
    """Let a call see its operands at the dtypes that they have in the model."""
    for operand, own in zip(node.all_input_nodes, old.all_input_nodes, strict=True):
        if tensor_of(operand).dtype != tensor_of(own).dtype:
            cast = edit.call(aten.to.dtype, operand, tensor_of(own).dtype, like=node)
            node.replace_input_with(operand, cast)
    edit.infer(node)


def _cast_behind(edit: Rewriter, node: fx.Node) -> None:
    """Cast the value of a call to the raised type for all its users."""
    args = (node, raised_dtype(tensor_of(node).dtype))
    cast = edit.add(aten.to.dtype, args, record=origin_of(node), before=node.next)
    edit.infer(cast)
    edit.redirect(node, cast)


def _raised(fake: torch.Tensor, edit: Rewriter) -> torch.Tensor:
    """A fake tensor of the raised type."""
    with edit.fake_mode:
        return torch.empty_strided(fake.size(), fake.stride(), dtype=raised_dtype(fake.dtype))


def _raised_argument(argument: Argument) -> Argument:
    """An argument, raised where it is a floating dtype."""
    return raised_dtype(argument) if isinstance(argument, torch.dtype) else argument
