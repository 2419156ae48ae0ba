"""Fused kernels of attention, and what they ask of the memory in which their operands lie.

A trace sees operands that lie in order. The kernel that it finds is called on the shards of a run,
which may lie otherwise: what the kernel does not take is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from shardlang.ir.compat import OpOverload

_ALIGNED = 8
"""Elements: what the strides of a mask are multiples of, for kernels of a GPU."""


def in_rows(x: Tensor) -> Tensor:
    """A tensor whose last dim lies in order: itself if it does."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def aligned(mask: Tensor) -> Tensor:
    """A mask whose rows begin where a kernel of a GPU can read them: itself if they do."""
    *outer, last = mask.stride()
    if last == 1 and not any(stride % _ALIGNED for stride in outer):
        return mask
    size = mask.shape[-1]
    return torch.nn.functional.pad(mask, [0, -size % _ALIGNED or _ALIGNED])[..., :size]


def lay_out_operands(graph: fx.Graph) -> None:
    """Lay out what the kernels of attention in a trace read, forward and backward."""
    for node in graph.nodes:
        if not _is_kernel(node):
            continue
        query, key, value, *_ = node.args
        for one in {query: None, key: None, value: None}:
            _read_through(in_rows, one, node)
        mask = _mask_of(node)
        if mask is not None:
            _read_through(aligned, mask, node)


def _is_kernel(node: fx.Node) -> bool:
    """Whether a call is of a kernel that does all of an attention."""
    if not isinstance(node.target, OpOverload):
        return False
    names = [argument.name for argument in node.target._schema.arguments]
    return names[:3] == ["query", "key", "value"] and "dropout_p" in names


def _mask_of(node: fx.Node) -> fx.Node | None:
    """The mask that a kernel of a GPU adds; one of a CPU takes masks as they lie."""
    assert isinstance(node.target, OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    place = names.index("attn_bias") if "attn_bias" in names else len(node.args)
    found = node.args[place] if place < len(node.args) else None
    return found if isinstance(found, fx.Node) else None


def _read_through(change: object, operand: object, kernel: fx.Node) -> None:
    """Let a kernel, and all that stands behind it, read an operand as a change gives it."""
    assert isinstance(operand, fx.Node) and callable(change)
    order = {node: place for place, node in enumerate(kernel.graph.nodes)}
    with kernel.graph.inserting_before(kernel):
        made = kernel.graph.call_function(change, (operand,))
    operand.replace_all_uses_with(
        made, delete_user_cb=lambda user: user is not made and order[user] >= order[kernel]
    )
