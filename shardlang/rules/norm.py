"""Normalisations: where the normalised dims are split, statistics come from global sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call
from shardlang.rules.reduce import moments
from shardlang.rules.registry import Emit, rule
from shardlang.rules.shapes import arrow, dim_names, tensor
from shardlang.rules.softmax import in_dtype, in_wide

aten: Any = torch.ops.aten


def _normalised(call: Call) -> list[int]:
    rank = call.rank("input")
    return list(range(rank - len(call["normalized_shape"]), rank))


def _last_dims(call: Call) -> str:
    """The last dims are normalised; weight and bias have those dims alone."""
    names, last = dim_names(call.rank("input")), _normalised(call)
    marked = [name + "~" * (i in last) for i, name in enumerate(names)]
    scale = tensor(names[i] for i in last)
    kept = tensor("1" if i in last else name for i, name in enumerate(names))
    results = [tensor(names), kept, kept][: len(call.results)]
    return arrow([tensor(marked), *[scale] * (len(call.shapes) - 1)], results)


def _scaled(emit: Emit, x: fx.Node, weight: Any, bias: Any, out: torch.dtype) -> fx.Node:
    """`x` times weight plus bias, in the dtype of the sums, cast to the result's."""
    wide = x.meta["val"].dtype
    if weight is not None:
        x = emit(aten.mul.Tensor, x, in_dtype(emit, weight, wide))
    if bias is not None:
        x = emit(aten.add.Tensor, x, in_dtype(emit, bias, wide))
    return in_dtype(emit, x, out)


def standardise(
    emit: Emit, x: fx.Node, dims: Sequence[int], eps: float
) -> tuple[fx.Node, fx.Node, fx.Node]:
    """`x` with mean 0 and variance 1 over `dims`, its mean, and one over its deviation."""
    variance, mean = moments(emit, x, dims, 0)
    scale = emit(aten.rsqrt.default, emit(aten.add.Tensor, variance, eps))
    return emit(aten.mul.Tensor, emit(aten.sub.Tensor, x, mean), scale), mean, scale


def _lower_layer_norm(call: Call, sharding: Sharding, emit: Emit) -> Any:
    x = in_wide(emit, call["input"])
    made, mean, scale = standardise(emit, x, _normalised(call), call["eps"])
    out = _scaled(emit, made, call["weight"], call["bias"], call.results[0].dtype)
    return out if len(call.results) == 1 else (out, mean, scale)


rule(aten.layer_norm, aten.native_layer_norm, spec=_last_dims, lower=_lower_layer_norm)


def _lower_rms_norm(call: Call, sharding: Sharding, emit: Emit) -> Any:
    dims, eps = _normalised(call), call["eps"]
    if eps is None:
        eps = torch.finfo(call["input"].meta["val"].dtype).eps
    x = in_wide(emit, call["input"])
    count = 1
    for d in dims:
        count *= call.rank("input") and call.shape("input")[d]
    squares = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, x, x), dims, True)
    mean = emit(aten.div.Tensor, squares, count)
    scale = emit(aten.rsqrt.default, emit(aten.add.Tensor, mean, eps))
    made = emit(aten.mul.Tensor, x, scale)
    out = _scaled(emit, made, call["weight"], None, call.results[0].dtype)
    return out if len(call.results) == 1 else (out, scale)


rule(aten.rms_norm, spec=_last_dims, lower=_lower_rms_norm)

