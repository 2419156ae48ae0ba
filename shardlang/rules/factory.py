"""Rules of ops that make tensors from sizes and numbers; every dim may be split."""

from __future__ import annotations

import torch

from shardlang.ir.device_values import size_at
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.local import drawn
from shardlang.rules.local_shape import arange_here, eye_here, place
from shardlang.rules.registry import rule
from shardlang.rules.view import local_sizes
from shardlang.rules.writing import arrow, names

aten = torch.ops.aten


def _made(call: Call) -> str:
    """Factors of the result alone; operands are numbers."""
    return arrow([[] for _ in call.shapes], [names(len(call.out))])


def made_of(call: Call) -> dict[str, object]:
    """Dtype and device of the result, as keyword arguments."""
    return {"dtype": call.results[0].dtype, "device": call.results[0].device}


def _sized(call: Call, sharding: Sharding) -> LocalCall:
    return call.replace(size=local_sizes(sharding))


rule(
    aten.zeros.default, aten.ones.default, aten.empty.memory_format, aten.full.default,
    spec=_made, localize=_sized,
)  # fmt: skip
rule(aten.scalar_tensor.default, spec="-> .")


def _strided(call: Call, sharding: Sharding) -> LocalCall:
    return aten.empty.memory_format, (local_sizes(sharding),), made_of(call)


rule(
    aten.empty_strided.default, aten.empty_permuted.default,
    spec=_made, localize=_strided,
)  # fmt: skip


def _arange(call: Call, sharding: Sharding) -> LocalCall:
    dim = sharding.result().dims[0]
    start, step = call.get("start", 0), call.get("step", 1)
    return arange_here, (start, step, place(dim), size_at(dim)), made_of(call)


rule(
    aten.arange.default, aten.arange.start, aten.arange.start_step,
    spec="-> n", localize=_arange,
)  # fmt: skip


def _eye(call: Call, sharding: Sharding) -> LocalCall:
    rows, columns = sharding.result().dims
    places = (place(rows), size_at(rows), place(columns), size_at(columns))
    return eye_here, places, made_of(call)


rule(aten.eye.default, aten.eye.m, spec="-> n m", localize=_eye)


def _cut(call: Call, sharding: Sharding) -> LocalCall:
    """Every device makes the whole and keeps its part."""
    op, args, kwargs = call.replace()
    dims = sharding.result().dims
    return drawn, (op, [place(dim) for dim in dims], [size_at(dim) for dim in dims], *args), kwargs


rule(
    aten.linspace.default, aten.linspace.Tensor_Tensor, aten.linspace.Tensor_Scalar,
    aten.linspace.Scalar_Tensor, aten.logspace.default, aten.logspace.Tensor_Tensor,
    aten.logspace.Tensor_Scalar, aten.logspace.Scalar_Tensor, aten.range.default, aten.range.step,
    aten.bartlett_window.default, aten.bartlett_window.periodic,
    aten.blackman_window.default, aten.blackman_window.periodic,
    aten.hann_window.default, aten.hann_window.periodic,
    aten.hamming_window.default, aten.hamming_window.periodic,
    aten.kaiser_window.default, aten.kaiser_window.periodic,
    aten.tril_indices.default, aten.triu_indices.default,
    spec=_made, localize=_cut,
)  # fmt: skip

rule(
    aten.zeros_like.default, aten.ones_like.default, aten.empty_like.default,
    aten.full_like.default, aten.zero.default, aten.fill.Scalar,
    spec="d... -> d...", detached=True,
)  # fmt: skip
rule(aten.fill.Tensor, spec="d..., . -> d...", linear=["value"])


def _new(call: Call) -> str:
    """The operand gives a dtype and a device; where it has the result's shape, it may be split."""
    if call.shapes[0] == call.out:
        return "d... -> d..."
    source = [f"x{i}!" for i in range(len(call.shapes[0]))]
    return arrow([source], [names(len(call.out))])


rule(
    aten.new_zeros.default, aten.new_ones.default, aten.new_empty.default, aten.new_full.default,
    spec=_new, localize=_sized, detached=True,
)  # fmt: skip


def _new_strided(call: Call, sharding: Sharding) -> LocalCall:
    return aten.new_empty.default, (call.operands[0], local_sizes(sharding)), made_of(call)


rule(aten.new_empty_strided.default, spec=_new, localize=_new_strided, detached=True)
