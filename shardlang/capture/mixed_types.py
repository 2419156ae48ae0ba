"""Products of two floating types, which fake tensors let pass and the ops themselves refuse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from shardlang.capture.errors import CaptureError
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.node import info, tensors_of
from shardlang.ir.printed_type import dtype_name
from shardlang.ir.traits import OpKind
from shardlang.rules.registry import traits_of


def refuse_mixed_products(
    graph: fx.Graph, leaves: Sequence[Leaf], compute: torch.dtype | None
) -> None:
    """Raise SH0355 for a product of matrices of different floating types.

    Args:
        compute: the type to which parameters and inputs are cast; None if the model has its own.
    """
    for node in graph.nodes:
        if node.op != "call_function" or traits_of(node).kind is not OpKind.PRODUCT:
            continue
        read = {dtype: source for source in node.all_input_nodes for dtype in _floats(source)}
        if len(read) > 1:
            raise CaptureError(
                "SH0355",
                f"`{traits_of(node).name}` is given {' and '.join(map(dtype_name, read))},"
                " and takes one type",
                help=_remedy(read, leaves, compute),
                source=info(node).source,
            )


def _floats(node: fx.Node) -> list[torch.dtype]:
    return [x.dtype for x in tensors_of(node) if x.dtype.is_floating_point]


def _remedy(
    read: dict[torch.dtype, fx.Node], leaves: Sequence[Leaf], compute: torch.dtype | None
) -> str:
    if compute is None:
        return "cast one of them in the model: `x.to(weight.dtype)`"
    stated = f"`compute = {dtype_name(compute)}`"
    kept = {leaf.node: leaf.name for leaf in leaves if leaf.kind is LeafKind.BUFFER}
    for dtype, source in read.items():
        origin = _origin(source, dtype)
        if dtype is not compute and origin.name in kept:
            return (
                f"buffers keep their type under {stated}: cast what is made of"
                f" `{kept[origin.name]}` in the model (`x.to(weight.dtype)`), or register it in the"
                " narrower type"
            )
    return (
        f"under {stated} parameters and inputs are cast, and what the model casts or makes itself"
        " has the type that its code names: name that of the weight (`x.to(weight.dtype)`)"
    )


def _origin(node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """The first value on the way to a node that has a type: a leaf, or what is made in it."""
    while True:
        before = [x for x in node.all_input_nodes if dtype in _floats(x)]
        if not before:
            return node
        node = before[0]
