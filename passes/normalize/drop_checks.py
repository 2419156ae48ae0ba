"""Drop checks, and numbers taken from tensors that only checks use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from shardlang.ir.compat import tree_leaves
from shardlang.ir.graph import ShardGraph
from shardlang.ir.node import info
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.errors import PassError
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.traced import checks_dropped
from shardlang.passes.normalize.fx_edit import is_op

aten = torch.ops.aten
_CHECKS = [
    aten._assert_tensor_metadata,
    aten._assert_async,
    aten._assert_scalar,
    aten.sym_constrain_range,
    aten.sym_constrain_range_for_size,
    aten._functional_assert_async,
    torch._check,
]
_ON_DATA = [aten._assert_async, aten._assert_scalar, aten._functional_assert_async]


@dataclass(frozen=True, slots=True)
class DropChecks:
    """Drop checks, and note the lines of the model that check data."""

    name: str = "drop_checks"
    establishes: ClassVar[tuple[Invariant, ...]] = (checks_dropped,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Drop them.

        Raises:
            PassError: a value depends on a number that is taken from a tensor.
        """
        graph.info.checks += drop_checks(graph.graph)
        return graph


def drop_checks(graph: fx.Graph) -> list[str]:
    """Drop checks in place; return the model's lines of those on data.

    Raises `PassError` SH0354 for a value that depends on a number taken from a tensor.
    """
    lines, edit = [], Rewriter(graph)
    for node in reversed(graph.nodes):
        if is_op(node, _CHECKS) and not node.users:
            if is_op(node, _ON_DATA):
                lines.append(info(node).source)
            edit.remove(node)
        elif _is_number(node) and not node.users:
            edit.remove(node)
    for node in graph.nodes:
        if not all(map(_is_static, tree_leaves(info(node).value))):
            message, help = _why(node)
            raise PassError("SH0354", message, help=help, source=info(node).source)
    return lines[::-1]


def _why(node: fx.Node) -> tuple[str, str]:
    """Why a node cannot be traced whose value depends on data, and what to do."""
    if _is_number(node):
        return (
            "the model needs the value of a tensor as a number, which is not known while it is"
            " traced",
            "keep the value a tensor: leave out `.item()`, `.tolist()`, `float()` or `int()`",
        )
    return (
        f"the shape of `{_op_name(node)}`'s result depends on the values of a tensor",
        "keep the shape and mask instead: `torch.where(mask, x, 0)`",
    )


def _is_number(node: fx.Node) -> bool:
    """Whether a call gives a number that depends on data, or None."""
    value = info(node).value
    return (
        node.op == "call_function"
        and not isinstance(value, torch.Tensor | tuple | list)
        and (value is not None and not _is_static(value))
    )


def _op_name(node: fx.Node) -> str:
    """An operator without namespace and overload."""
    return str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.")


def _is_static(value: object) -> bool:
    """Whether a traced value is free of symbolic sizes."""
    if isinstance(value, torch.Tensor):
        return all(isinstance(size, int) for size in value.shape)
    return not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
