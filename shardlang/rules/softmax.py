"""softmax and log_softmax: over a split dim, by a global maximum and a global sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from shardlang.ir.collective import ReduceOp
from shardlang.ir.node import tensor_of
from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.rules import local
from shardlang.rules.call import Call
from shardlang.rules.op_rule import Emit
from shardlang.rules.registry import rule
from shardlang.rules.shapes import fixed, one_dim, reduction, wide_dtype

aten = torch.ops.aten


def _over(call: Call) -> str:
    dims = [d % call.rank("x") for d in call.integers("dims")]
    return reduction(call, dims, keepdim=call.flag("keepdim"))


rule(local.max_over, spec=_over, reduce=ReduceOp.MAX, detached=True)
rule(local.min_over, spec=_over, reduce=ReduceOp.MIN, detached=True)


def shifted(emit: Emit, x: fx.Node, dims: Sequence[int]) -> tuple[fx.Node, fx.Node]:
    """`x` less its maximum over `dims`, and that maximum (without gradient; 0 where infinite)."""
    best = emit(local.max_over, x, list(dims), True)
    finite = emit(aten.masked_fill.Scalar, best, emit(aten.isinf.default, best), 0)
    return emit(aten.sub.Tensor, x, finite), finite


def split_softmax(
    emit: Emit, x: fx.Node, dim: int, log: bool = False, safe: bool = False
) -> fx.Node:
    """softmax over a split dim; a row of -inf alone gives nan, or zeros if `safe`."""
    moved, _ = shifted(emit, x, [dim])
    powers = emit(aten.exp.default, moved)
    total = emit(aten.sum.dim_IntList, powers, [dim], True)
    if log:
        return emit(aten.sub.Tensor, moved, emit(aten.log.default, total))
    if safe:
        none = emit(aten.eq.Scalar, total, 0)
        total = emit(aten.masked_fill.Scalar, total, none, 1)
    return emit(aten.div.Tensor, powers, total)


def in_wide(emit: Emit, x: fx.Node, dtype: torch.dtype | None = None) -> fx.Node:
    """`x` in the dtype in which it is to be summed."""
    have = tensor_of(x).dtype
    want = dtype or wide_dtype(have)
    return x if have == want else emit(aten.to.dtype, x, want)


def in_dtype(emit: Emit, x: fx.Node, dtype: torch.dtype) -> fx.Node:
    """`x` cast to `dtype`."""
    return x if tensor_of(x).dtype == dtype else emit(aten.to.dtype, x, dtype)


def _spec(call: Call) -> str:
    return fixed(call, one_dim(call), "~")


def twice(spec: str) -> str:
    """A rule of one operand as that of two operands of its dims."""
    return f"{spec.partition(' -> ')[0]}, {spec}"


def _lower(call: Call, sharding: Sharding, emit: Emit, log: bool, safe: bool = False) -> fx.Node:
    """softmax in the wider of the given dtype and the summing one, cast to the result's dtype."""
    x = in_wide(emit, call.operand("self"), wide_dtype(call.results[0].dtype))
    out = split_softmax(emit, x, call.dim(), log, safe)
    return in_dtype(emit, out, call.results[0].dtype)


def _softmax(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    return _lower(call, sharding, emit, log=False)


def _safe_softmax(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    return _lower(call, sharding, emit, log=False, safe=True)


def _log_softmax(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    return _lower(call, sharding, emit, log=True)


rule(
    aten.softmax.int, aten._softmax.default, aten.special_softmax,
    spec=_spec, lower=_softmax, keeps="result", kind=OpKind.SOFTMAX,
)  # fmt: skip
rule(
    aten._softmax_backward_data, aten._log_softmax_backward_data,
    spec=lambda call: twice(fixed(call, one_dim(call))), linear=["grad_output"],
    keeps="grad_output output",
)  # fmt: skip
rule(
    aten._safe_softmax,
    spec=_spec, lower=_safe_softmax, keeps="result", kind=OpKind.SOFTMAX,
)  # fmt: skip
rule(
    aten.log_softmax.int, aten._log_softmax.default, aten.special_log_softmax,
    spec=_spec, lower=_log_softmax, keeps="result", kind=OpKind.SOFTMAX,
)  # fmt: skip
