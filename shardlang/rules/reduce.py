"""Reductions. A sum leaves a partial sum; every other reduction is written out in terms of sums,
maxima and minima where the dim that it reduces is split."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import fx

from shardlang.ir.collective import ReduceOp
from shardlang.ir.node import info, tensor_of
from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.rules import local
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.local_shape import place
from shardlang.rules.op_rule import Emit, Lower, Lowered
from shardlang.rules.registry import rule
from shardlang.rules.shapes import one_dim, reduction, signature, some_dims, wide_dtype
from shardlang.rules.softmax import in_dtype, in_wide, shifted
from shardlang.rules.writing import tensor

aten = torch.ops.aten


def _keepdim(call: Call) -> bool:
    return call.flag("keepdim")


def _summed(call: Call) -> str:
    return reduction(call, some_dims(call), keepdim=_keepdim(call))


def _lowered(call: Call) -> str:
    """Reduced dims that only a lowering can split; complex numbers have no lowering."""
    mark = "!" if tensor_of(call.operands[0]).is_complex() else "~"
    return reduction(call, some_dims(call), mark, _keepdim(call))


def _lowered_one(call: Call) -> str:
    return reduction(call, one_dim(call), "~", _keepdim(call))


def _whole(call: Call) -> str:
    return reduction(call, some_dims(call), "!", _keepdim(call))


def _whole_one(call: Call) -> str:
    return reduction(call, one_dim(call), "!", _keepdim(call))


rule(aten.sum.default, aten.sum.dim_IntList, spec=_summed, linear=["self"])
rule(aten.nansum, aten.linalg__powsum, spec=_summed)
rule(aten.count_nonzero, spec=_summed, detached=True)


def _count(call: Call, dims: Sequence[int]) -> int:
    return math.prod(call.shapes[0][d] for d in dims)


def lower_mean(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """The sum of all shards over the global size."""
    dims = some_dims(call)
    out = call.results[0].dtype
    x = in_wide(emit, call.operand("self"), call.dtype("dtype"))
    total = emit(aten.sum.dim_IntList, x, list(dims), _keepdim(call))
    return in_dtype(emit, emit(aten.div.Tensor, total, _count(call, dims)), out)


rule(aten.mean.default, aten.mean.dim, spec=_lowered, linear=["self"], lower=lower_mean)


def _correction(call: Call) -> float:
    if "correction" in call.names:
        return 1 if call["correction"] is None else float(call.number("correction"))
    return float(call.flag("unbiased", True))


def moments(
    emit: Emit, x: fx.Node, dims: Sequence[int], correction: float
) -> tuple[fx.Node, fx.Node]:
    """Variance and mean over `dims`, which stay with size 1, from global sums."""
    count = math.prod(tensor_of(x).shape[d] for d in dims)
    mean = emit(aten.div.Tensor, emit(aten.sum.dim_IntList, x, list(dims), True), count)
    apart = emit(aten.sub.Tensor, x, mean)
    squares = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, apart, apart), list(dims), True)
    return emit(aten.div.Tensor, squares, max(count - correction, 0)), mean


def root(emit: Emit, x: fx.Node) -> fx.Node:
    """Square root whose gradient at zero is zero."""
    zero = emit(aten.eq.Scalar, x, 0)
    safe = emit(aten.masked_fill.Scalar, x, zero, 1)
    return emit(aten.masked_fill.Scalar, emit(aten.sqrt.default, safe), zero, 0)


def _squeezed(emit: Emit, x: fx.Node, dims: Sequence[int], keepdim: bool) -> fx.Node:
    """Remove reduced dims, of size 1, unless they are to be kept."""
    return x if keepdim or not dims else emit(aten.squeeze.dims, x, list(dims))


def _lower_spread(call: Call, emit: Emit, deviation: bool, with_mean: bool) -> Lowered:
    dims, keepdim, out = some_dims(call), _keepdim(call), call.results[0].dtype
    x = in_wide(emit, call.operand("self"))
    spread, mean = moments(emit, x, dims, _correction(call))
    results = [root(emit, spread) if deviation else spread, mean][: 2 if with_mean else 1]
    done = [in_dtype(emit, _squeezed(emit, r, dims, keepdim), out) for r in results]
    return tuple(done) if with_mean else done[0]


def _spread(deviation: bool, with_mean: bool) -> Lower:
    return lambda call, sharding, emit: _lower_spread(call, emit, deviation, with_mean)


rule(aten.var, spec=_lowered, lower=_spread(False, False))
rule(aten.std, spec=_lowered, lower=_spread(True, False), keeps="self result")
rule(aten.var_mean, spec=_lowered, lower=_spread(False, True))
rule(aten.std_mean, spec=_lowered, lower=_spread(True, True), keeps="self result.0")


def extreme(emit: Emit, x: fx.Node, dims: Sequence[int], largest: bool) -> fx.Node:
    """The maximum or minimum over `dims`, kept with size 1; its gradient is shared by all ties."""
    if not dims:
        return x
    best = emit(local.max_over if largest else local.min_over, x, list(dims), True)
    if not info(x).differentiable or not tensor_of(x).is_floating_point():
        return best
    ties = emit(aten.eq.Tensor, x, best)
    most = math.prod(tensor_of(x).shape[d] for d in dims)
    narrow = torch.int32 if most <= torch.iinfo(torch.int32).max else torch.int64
    count = emit(aten.sum.dim_IntList, ties, list(dims), True, dtype=narrow)
    total = emit(aten.sum.dim_IntList, emit(aten.where.ScalarOther, ties, x, 0), list(dims), True)
    return emit(aten.div.Tensor, total, emit(aten.to.dtype, count, tensor_of(x).dtype))


def _extreme_of(largest: bool) -> Callable[[Call, Sharding, Emit], fx.Node]:
    def lower(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
        dims, x = some_dims(call), call.operand("self")
        return _squeezed(emit, extreme(emit, x, dims, largest), dims, _keepdim(call))

    return lower


rule(aten.amax, aten.max.default, spec=_lowered, lower=_extreme_of(True), keeps="self result")
rule(aten.amin, aten.min.default, spec=_lowered, lower=_extreme_of(False), keeps="self result")


def _aminmax_dims(call: Call) -> tuple[int, ...]:
    if call["dim"] is None or not call.shapes[0]:
        return tuple(range(len(call.shapes[0])))
    return one_dim(call)


def _lower_aminmax(call: Call, sharding: Sharding, emit: Emit) -> tuple[fx.Node, ...]:
    dims, x = _aminmax_dims(call), call.operand("self")
    both = (extreme(emit, x, dims, False), extreme(emit, x, dims, True))
    return tuple(_squeezed(emit, one, dims, _keepdim(call)) for one in both)


rule(
    aten.aminmax, spec=lambda call: reduction(call, _aminmax_dims(call), "~", _keepdim(call)),
    lower=_lower_aminmax, keeps="self result",
)  # fmt: skip


def _first_spec(call: Call) -> str:
    names, dims = [f"d{i}" for i in range(call.rank("x"))], call.integers("dims")
    kept = ["1" if i in dims else name for i, name in enumerate(names)]
    return signature([tensor(names), tensor(kept)], [tensor(kept)])


def _first_local(call: Call, sharding: Sharding) -> LocalCall:
    dims = sharding.operand(0).dims
    return call.replace(at=[place(dims[d]) for d in call.integers("dims")])


rule(local.first_index, spec=_first_spec, localize=_first_local, reduce=ReduceOp.MIN, detached=True)


def _pick_spec(call: Call) -> str:
    names, dim = [f"d{i}" for i in range(call.rank("x"))], call.integer("dim")
    rest = [name for i, name in enumerate(names) if i != dim]
    return signature([tensor(names), tensor(rest)], [tensor(rest)])


def _pick_local(call: Call, sharding: Sharding) -> LocalCall:
    return call.replace(at=place(sharding.operand(0).dims[call.integer("dim")]))


rule(
    local.pick,
    spec=_pick_spec, localize=_pick_local, linear=["x"], passes=False, keeps="x index",
)  # fmt: skip


def _index_of(emit: Emit, x: fx.Node, dims: Sequence[int], largest: bool) -> fx.Node:
    """First flat index of the extreme over `dims`, which stay with size 1."""
    best = emit(local.max_over if largest else local.min_over, x, list(dims), True)
    sizes = [int(tensor_of(x).shape[d]) for d in dims]
    return emit(local.first_index, x, best, list(dims), sizes)


def _picked_of(largest: bool) -> Callable[[Call, Sharding, Emit], tuple[fx.Node, ...]]:
    """max.dim, min.dim: the gradient goes to the element that the index names.

    Without a gradient the value does not need the index, which is dropped if nothing reads it.
    """

    def lower(call: Call, sharding: Sharding, emit: Emit) -> tuple[fx.Node, ...]:
        (dim,), x = one_dim(call), call.operand("self")
        index = _index_of(emit, x, [dim], largest)
        flat = emit(aten.squeeze.dims, index, [dim])
        if not (info(x).differentiable and tensor_of(x).is_floating_point()):
            best = emit(local.max_over if largest else local.min_over, x, [dim], _keepdim(call))
            return best, index if _keepdim(call) else flat
        value = emit(local.pick, x, flat, dim)
        if not _keepdim(call):
            return value, flat
        return emit(aten.unsqueeze.default, value, dim), index

    return lower


rule(
    aten.max.dim,
    spec=_lowered_one, lower=_picked_of(True), keeps="result.1", kind=OpKind.CHOICE,
)  # fmt: skip
rule(aten.min.dim, spec=_lowered_one, lower=_picked_of(False), keeps="result.1")


def _argument_dims(call: Call) -> tuple[int, ...]:
    return some_dims(call) if call["dim"] is None else one_dim(call)


def _argument_of(largest: bool) -> Callable[[Call, Sharding, Emit], fx.Node]:
    def lower(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
        dims, x = _argument_dims(call), call.operand("self")
        return _squeezed(emit, _index_of(emit, x, dims, largest), dims, _keepdim(call))

    return lower


def _argument(call: Call) -> str:
    return reduction(call, _argument_dims(call), "~", _keepdim(call))


rule(
    aten.argmax,
    spec=_argument, lower=_argument_of(True), detached=True, kind=OpKind.CHOICE,
)  # fmt: skip
rule(aten.argmin, spec=_argument, lower=_argument_of(False), detached=True)


def _truth(largest: bool) -> Callable[[Call, Sharding, Emit], fx.Node]:
    """any is a maximum of truth values, all a minimum."""

    def lower(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
        dims = some_dims(call)
        true = emit(aten.ne.Scalar, call.operand("self"), 0)
        made = emit(local.max_over if largest else local.min_over, true, list(dims), _keepdim(call))
        return in_dtype(emit, made, call.results[0].dtype)

    return lower


rule(aten.any, spec=_lowered, lower=_truth(True), detached=True)
rule(aten.all, spec=_lowered, lower=_truth(False), detached=True)


def _wide(call: Call) -> torch.dtype:
    """The dtype to compute in: integers and booleans are taken as what they give."""
    have = tensor_of(call.operand("self")).dtype
    exact = have.is_floating_point or have.is_complex
    return wide_dtype(have if exact else call.results[0].dtype)


def _lower_logsumexp(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Maximum plus the logarithm of the global sum of powers."""
    dims = list(some_dims(call))
    moved, best = shifted(emit, in_wide(emit, call.operand("self"), _wide(call)), dims)
    total = emit(aten.sum.dim_IntList, emit(aten.exp.default, moved), dims, True)
    made = emit(aten.add.Tensor, emit(aten.log.default, total), best)
    return in_dtype(emit, _squeezed(emit, made, dims, _keepdim(call)), call.results[0].dtype)


rule(
    aten.logsumexp, aten.special_logsumexp,
    spec=_lowered, lower=_lower_logsumexp, keeps="self result",
)  # fmt: skip

rule(aten.nanmean, aten.hash_tensor, spec=_whole)
rule(aten.median.default, aten.nanmedian.default, spec=_whole, keeps="self result")
rule(
    aten.median.dim, aten.nanmedian.dim, aten.mode, aten.kthvalue,
    spec=_whole_one, keeps="result.1",
)  # fmt: skip
