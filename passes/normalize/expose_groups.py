"""Write products of sorted rows as products by the group of each row.

PyTorch's and transformers' grouped products take rows sorted by group and where each group ends.
With a group for every row the same product is row by row, so it can be split along the rows, rows
can be routed, and it runs in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from shardlang.ir.graph import ShardGraph
from shardlang.ir.node import tensor_of
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.traced import groups_exposed
from shardlang.rules.call import Call
from shardlang.rules.experts.local_grouped import grouped_mm as _product_by_groups

aten = torch.ops.aten

assert _product_by_groups
_GROUPED_MM = torch.ops.shardlang.grouped_mm.default

SORTED = ("aten::_grouped_mm", "transformers::grouped_mm_fallback")
"""Ops that take rows `s i`, matrices `e i o`, and the ends of `e` groups."""


@dataclass(frozen=True, slots=True)
class ExposeGroups:
    """Write products of sorted rows as products by the group of each row."""

    name: str = "expose_groups"
    establishes: ClassVar[tuple[Invariant, ...]] = (groups_exposed,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Replace every product of sorted rows."""
        expose_groups(graph.graph)
        return graph


def expose_groups(graph: fx.Graph) -> None:
    """Replace every product of sorted rows in `graph`."""
    edit = Rewriter(graph)
    for node in list(graph.nodes):
        if _name(node) in SORTED and _takes_rows(node):
            edit.replace(node, _product(edit, node))


def _name(node: fx.Node) -> str:
    return node.target._schema.name if hasattr(node.target, "_schema") else ""


def _takes_rows(node: fx.Node) -> bool:
    """Whether the operands are rows, matrices and ends, and not the other forms of the op."""
    tensors = [x for x in (*node.args, *node.kwargs.values()) if isinstance(x, fx.Node)]
    return [tensor_of(x).dim() for x in tensors] == [2, 3, 1]


def _product(edit: Rewriter, node: fx.Node) -> fx.Node:
    """The product, with groups counted off the ends."""
    call = Call(node)
    rows, matrices = call.operands[:2]
    ends = call.operand("offs")
    numbers = edit.call(
        aten.arange.default, tensor_of(rows).shape[0], device=tensor_of(rows).device, like=node,
        dtype=tensor_of(ends).dtype,
    )  # fmt: skip
    groups = edit.call(aten.searchsorted.Tensor, ends, numbers, right=True, like=node)
    made = edit.call(_GROUPED_MM, rows, matrices, groups, like=node)
    dtype = tensor_of(node).dtype
    return (
        made if tensor_of(made).dtype is dtype else edit.call(aten.to.dtype, made, dtype, like=node)
    )
