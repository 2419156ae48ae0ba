"""The bytes that a tensor takes: in full, and on one device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from shardlang.ir.graph import result_layout
from shardlang.ir.layout import Layout
from shardlang.ir.node import tensor_of


def local_bytes(layout: Layout, dtype: torch.dtype) -> int:
    """Bytes of the largest shard of a tensor, which the first device holds."""
    return layout.held() * dtype.itemsize


def value_bytes(node: fx.Node) -> int:
    """Bytes of the largest shard of a value, as it comes out of the op that makes it."""
    return local_bytes(result_layout(node), tensor_of(node).dtype)


def whole_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of some tensors in full."""
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)
