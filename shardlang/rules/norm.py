"""Normalisations: where the normalised dims are split, statistics come from global sums."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx

from shardlang.ir.device_values import size_at
from shardlang.ir.node import tensor_of
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.op_rule import Emit, Lowered
from shardlang.rules.reduce import moments
from shardlang.rules.registry import rule
from shardlang.rules.shapes import signature
from shardlang.rules.softmax import in_dtype, in_wide
from shardlang.rules.writing import names as names_of
from shardlang.rules.writing import tensor

aten = torch.ops.aten


def _normalised(call: Call) -> list[int]:
    rank = call.rank("input")
    return list(range(rank - len(call.integers("normalized_shape")), rank))


def _last_dims(call: Call) -> str:
    """The last dims are normalised; weight and bias have those dims alone."""
    names, last = names_of(call.rank("input")), _normalised(call)
    marked = [name + "~" * (i in last) for i, name in enumerate(names)]
    scale = tensor(names[i] for i in last)
    kept = tensor("1" if i in last else name for i, name in enumerate(names))
    results = [tensor(names), kept, kept][: len(call.results)]
    return signature([tensor(marked), *[scale] * (len(call.shapes) - 1)], results)


def _affine(
    emit: Emit, x: fx.Node, weight: fx.Node | None, bias: fx.Node | None, out: torch.dtype
) -> fx.Node:
    """`x` times weight plus bias, in the dtype of the sums, cast to the result's."""
    wide = tensor_of(x).dtype
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


def _with_stats(call: Call, emit: Emit, out: fx.Node, mean: fx.Node, scale: fx.Node) -> Lowered:
    """The result alone, or with the statistics, through which PyTorch lets no gradient flow."""
    if len(call.results) == 1:
        return out
    stats = zip((mean, scale), call.results[1:], strict=True)
    return (out, *(in_dtype(emit, emit(aten.detach.default, s), r.dtype) for s, r in stats))


def _lower_layer_norm(call: Call, sharding: Sharding, emit: Emit) -> Lowered:
    x = in_wide(emit, call.operand("input"))
    made, mean, scale = standardise(emit, x, _normalised(call), call.number("eps"))
    out = _affine(emit, made, call.optional("weight"), call.optional("bias"), call.results[0].dtype)
    return _with_stats(call, emit, out, mean, scale)


rule(aten.layer_norm, spec=_last_dims, lower=_lower_layer_norm, keeps="input weight bias")
rule(
    aten.native_layer_norm,
    spec=_last_dims, lower=_lower_layer_norm, keeps="input weight bias result.1 result.2",
)  # fmt: skip


def _lower_rms_norm(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Zhang and Sennrich (2019), equation 4."""
    dims, x = _normalised(call), call.operand("input")
    standard = call["eps"] is None
    eps = torch.finfo(tensor_of(x).dtype).eps if standard else call.number("eps")
    x = in_wide(emit, x)
    squares = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, x, x), dims, True)
    mean = emit(aten.div.Tensor, squares, math.prod(call.shape("input")[d] for d in dims))
    scale = emit(aten.rsqrt.default, emit(aten.add.Tensor, mean, eps))
    made = emit(aten.mul.Tensor, x, scale)
    return _affine(emit, made, call.optional("weight"), None, call.results[0].dtype)


rule(aten.rms_norm, spec=_last_dims, lower=_lower_rms_norm)


def _groups(call: Call) -> int:
    return call.integer("num_groups" if "num_groups" in call.names else "group")


def _grouped(call: Call) -> str:
    """Groups of channels: batch and groups are carried, the rest is normalised."""
    groups = _groups(call)
    spatial = names_of(call.rank("input") - 2, "s")
    channels = f"(g={groups} c)"
    marked = tensor(["n", f"(g={groups} c~)", *(f"{s}~" for s in spatial)])
    scale = [channels] * (len(call.shapes) - 1)
    results = [tensor(["n", channels, *spatial]), "n g", "n g"][: len(call.results)]
    return signature([marked, *scale], results)


def _local_groups(call: Call, sharding: Sharding) -> LocalCall:
    groups = size_at(sharding.factors["g"])
    if "num_groups" in call.names:
        return call.replace(num_groups=groups)
    batch, channels = sharding.operand(0).dims[:2]
    return call.replace(N=size_at(batch), C=size_at(channels), group=groups)


def _lower_group_norm(call: Call, sharding: Sharding, emit: Emit) -> Lowered:
    shape, groups = call.shape("input"), _groups(call)
    apart = [shape[0], groups, shape[1] // groups, *shape[2:]]
    x = emit(aten.reshape.default, in_wide(emit, call.operand("input")), apart)
    dims = list(range(2, len(apart)))
    made, mean, scale = standardise(emit, x, dims, call.number("eps"))
    made = emit(aten.reshape.default, made, list(shape))
    weight, bias = (_per_channel(emit, call.optional(n), len(shape)) for n in ("weight", "bias"))
    out = _affine(emit, made, weight, bias, call.results[0].dtype)
    if len(call.results) == 1:
        return out
    stats = zip((mean, scale), call.results[1:], strict=True)
    return (out, *(in_dtype(emit, emit(aten.squeeze.dims, s, dims), r.dtype) for s, r in stats))


def _per_channel(emit: Emit, x: fx.Node | None, rank: int) -> fx.Node | None:
    """A value for each channel, shaped to multiply a batch of channels."""
    return None if x is None else emit(aten.reshape.default, x, [-1, *[1] * (rank - 2)])


rule(
    aten.group_norm,
    spec=_grouped, localize=_local_groups, lower=_lower_group_norm, keeps="input weight",
)  # fmt: skip
rule(
    aten.native_group_norm,
    spec=_grouped, localize=_local_groups, lower=_lower_group_norm,
    keeps="input weight result.1 result.2",
)  # fmt: skip


def _is_training(call: Call) -> bool:
    return call.flag("training" if "training" in call.names else "use_input_stats")


def _batch_dims(call: Call) -> list[int]:
    """The dims that the statistics run over: all but channels, and the batch in instance norm."""
    first = 2 if "use_input_stats" in call.names else 0
    return [d for d in range(first, call.rank("input")) if d != 1]


def _by_channel(call: Call) -> str:
    """Statistics for each channel, from the batch in training, else from the running ones."""
    names = names_of(call.rank("input"))
    mark = "~" if _is_training(call) else ""
    marked = [name + mark * (i in _batch_dims(call)) for i, name in enumerate(names)]
    return signature([tensor(marked), *["d1"] * (len(call.shapes) - 1)], [tensor(names)])


def _lower_batch_norm(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Statistics of the whole batch, not of each device's shard of it."""
    x = in_wide(emit, call.operand("input"))
    made, _, _ = standardise(emit, x, _batch_dims(call), call.number("eps"))
    rank = call.rank("input")
    weight, bias = (_per_channel(emit, call.optional(n), rank) for n in ("weight", "bias"))
    return _affine(emit, made, weight, bias, call.results[0].dtype)


rule(aten.batch_norm, aten.instance_norm, spec=_by_channel, lower=_lower_batch_norm)


def _by_channel_with_stats(call: Call) -> str:
    """The raw op: statistics are results too; in training the batch stays whole."""
    names = names_of(call.rank("input"))
    mark = "!" if call.flag("training") else ""
    marked = [name + mark * (i != 1) for i, name in enumerate(names)]
    channels = (call.shape("input")[1],)
    stats = ["d1" if shape == channels else "r!" for shape in call.result_shapes[1:]]
    return signature([tensor(marked), *["d1"] * (len(call.shapes) - 1)], [tensor(names), *stats])


rule(
    aten.native_batch_norm, aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_no_training, aten._native_batch_norm_legit_functional,
    spec=_by_channel_with_stats, keeps="input weight running_mean running_var result.1 result.2",
)  # fmt: skip
