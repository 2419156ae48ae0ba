"""Products of two floating types, which fake tensors let pass and the ops themselves refuse."""

from __future__ import annotations

import torch
from torch import fx

from shardlang.capture.errors import CaptureError
from shardlang.ir.node import info, tensors_of
from shardlang.ir.printed_type import dtype_name
from shardlang.ir.traits import OpKind
from shardlang.rules.registry import traits_of


def refuse_mixed_products(graph: fx.Graph, compute: torch.dtype | None) -> None:
    """Raise SH0355 for a product of matrices of different floating types.

    Args:
        compute: the type to which parameters and inputs are cast; None if the model has its own.
    """
    for node in graph.nodes:
        if node.op != "call_function" or traits_of(node).kind is not OpKind.PRODUCT:
            continue
        read = [x.dtype for source in node.all_input_nodes for x in tensors_of(source)]
        types = list(dict.fromkeys(dtype for dtype in read if dtype.is_floating_point))
        if len(types) > 1:
            raise CaptureError(
                "SH0355",
                f"`{traits_of(node).name}` is given {' and '.join(map(dtype_name, types))},"
                " and takes one type",
                help=_remedy(compute),
                source=info(node).source,
            )


def _remedy(compute: torch.dtype | None) -> str:
    if compute is None:
        return "cast one of them in the model: `x.to(weight.dtype)`"
    return (
        f"buffers keep their type under `compute = {dtype_name(compute)}`: cast what is made of"
        " one in the model (`x.to(weight.dtype)`), or register it in the narrower type"
    )
