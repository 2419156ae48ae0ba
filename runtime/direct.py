"""Ops that generated code calls as functions of `torch`, in half the time of `torch.ops`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx.node import Target

_ATEN = torch.ops.aten
_DIRECT: dict[object, Callable[..., object]] = {
    _ATEN.add.Tensor: torch.add, _ATEN.addmm.default: torch.addmm, _ATEN.bmm.default: torch.bmm,
    _ATEN.mm.default: torch.mm, _ATEN.mul.Tensor: torch.mul, _ATEN.neg.default: torch.neg,
    _ATEN.permute.default: torch.permute, _ATEN.reshape.default: torch.reshape,
    _ATEN.rsqrt.default: torch.rsqrt, _ATEN.sigmoid.default: torch.sigmoid,
    _ATEN.sub.Tensor: torch.sub, _ATEN.sum.dim_IntList: torch.sum, _ATEN.t.default: torch.t,
    _ATEN.tanh.default: torch.tanh, _ATEN.transpose.int: torch.transpose,
    _ATEN.unsqueeze.default: torch.unsqueeze, _ATEN.squeeze.dim: torch.squeeze,
    _ATEN.native_layer_norm.default: torch.native_layer_norm, _ATEN.exp.default: torch.exp,
}  # fmt: skip
"""Ops that are called as functions of `torch`: half the time of a call through `torch.ops`."""


def direct(target: Target) -> Target:
    """The function that calls an op at the least cost."""
    found = _DIRECT.get(target)
    return target if found is None else found
