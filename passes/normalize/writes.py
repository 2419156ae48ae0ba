"""What a call writes in place, and the call that computes the same value without writing."""

from __future__ import annotations

import torch
from torch import fx

from shardlang.ir.compat import OpOverload
from shardlang.ir.leaf import LeafKind
from shardlang.ir.node import info
from shardlang.passes.errors import PassError
from shardlang.passes.normalize.fx_edit import is_op
from shardlang.rules.call import Call

aten = torch.ops.aten

_FIXED = {
    LeafKind.PARAM: (
        "parameter",
        "change parameters in the training loop; what the forward keeps is a buffer",
    ),
    LeafKind.INPUT: ("input", "change a copy: `x = x.clone()` first"),
    LeafKind.CONSTANT: ("constant", "register the tensor as a buffer"),
}
"""Leaves that a program cannot change, with their names in messages and the remedy."""


def written_leaf(kind: LeafKind, name: str, source: str) -> PassError:
    """The error for a write to what a program cannot change: a parameter, input or constant."""
    word, help = _FIXED[kind]
    return PassError(
        "SH0357", f"the forward changes the {word} `{name}` in place", help=help, source=source
    )


def functional_form(node: fx.Node) -> OpOverload:
    """The functional overload of a writing aten call. Raises `PassError` if there is none."""
    target = node.target
    assert isinstance(target, OpOverload)
    name, overload = target.overloadpacket.__name__, target._overloadname
    functional = f"__{name[3:-2]}__" if name.startswith("__i") else name.removesuffix("_")
    choices = [(functional, overload)]
    if "out" in _written_arguments(target):
        choices = [(name, overload.removesuffix("_out")), (name, "default"), (name, "Tensor")]
    for packet, suffix in choices:
        found = getattr(getattr(aten, packet, None), suffix, None)
        if not isinstance(found, OpOverload) or found._schema.is_mutable:
            continue
        if _types(found) == _types(target):
            return found
    raise no_form(node)


def _types(target: OpOverload) -> list[str]:
    """The types of an operator's operands, without an `out`."""
    ignored = ("out", "generator")
    return [str(a.type) for a in target._schema.arguments if a.name not in ignored]


def written_operand(node: fx.Node) -> fx.Node:
    """The only operand that a call writes. Raises `PassError` if there are several."""
    assert isinstance(node.target, OpOverload)
    written = _written_arguments(node.target)
    operand = Call(node)[written[0]]
    if len(written) != 1 or not isinstance(operand, fx.Node):
        raise no_form(node)
    return operand


def no_form(node: fx.Node) -> PassError:
    """The error for an in-place operator without a functional counterpart."""
    return PassError(
        "SH0357",
        f"`{node.target}` changes its operand in place and has no counterpart that does not",
        help="compute a new tensor instead of changing one",
        source=info(node).source,
    )


def _written_arguments(target: OpOverload) -> list[str]:
    """The names of the operands that an operator writes."""
    arguments = target._schema.arguments
    return [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]


def writes(node: fx.Node) -> bool:
    """Whether the call writes one of its operands."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    return bool(node.target._schema.is_mutable) and not is_op(node, [aten.detach_])
