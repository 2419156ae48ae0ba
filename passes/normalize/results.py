"""The results of a traced graph."""

from __future__ import annotations

import torch
from torch import fx

from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Result, ResultKind
from shardlang.ir.node import tensors_of


def result_of(name: str, kind: ResultKind, value: object) -> Result:
    """A result that a node, or something else than a tensor, holds."""
    tensors = tensors_of(value) if isinstance(value, fx.Node) else []
    if not tensors:
        return Result(name, kind, torch.float32, Layout(()))
    return Result(name, kind, tensors[0].dtype, Layout.whole(tensors[0].shape))
