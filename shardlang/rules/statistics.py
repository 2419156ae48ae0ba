"""Quantiles, histograms and integrals along a dim: that dim stays whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shardlang.ir.device_values import size_at
from shardlang.ir.node import tensor_of
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.registry import rule
from shardlang.rules.shapes import reduction, signature, whole
from shardlang.rules.writing import names as names_of
from shardlang.rules.writing import tensor

aten = torch.ops.aten


def _quantile_dims(call: Call) -> Sequence[int]:
    rank = len(call.shapes[0])
    return range(rank) if call["dim"] is None else [call.dim()] if rank else []


def _quantiles(call: Call) -> str:
    """The quantiles asked for come first in the result."""
    spec = reduction(call, _quantile_dims(call), "!", call.flag("keepdim"))
    if not call.has("q"):
        return spec
    operand, _, result = spec.partition(" -> ")
    wanted = ["q"] * call.rank("q")
    kept = [name for name in result.split() if name != "."]
    return signature([operand, tensor(wanted)], [tensor([*wanted, *kept])])


rule(aten.quantile, aten.nanquantile, spec=_quantiles)


def _counted(call: Call) -> str:
    """histc: with given limits, counts of shards add up; else the limits are those of all."""
    mark = "!" if call["min"] == call["max"] else ""
    operand = tensor(name + mark for name in names_of(call.rank("self")))
    return signature([operand], ["bins!"])


rule(aten.histc, spec=_counted, detached=True)


rule(aten.cov, aten.corrcoef, aten.histogram, aten.combinations, spec=whole)
rule(aten.cartesian_prod, spec=whole, view=lambda call: len(call.shapes) == 1)
rule(
    aten.ctc_loss.IntList, aten.ctc_loss.Tensor,
    spec=whole, keeps="log_probs targets input_lengths target_lengths result",
)  # fmt: skip
rule(aten.segment_reduce, spec=whole, keeps="data lengths indices offsets result")


def _integral(call: Call, running: bool) -> str:
    """Values `y`, and places `x` of the same shape or along the dim alone."""
    dim = call.dim()
    names = [n + "!" * (i == dim) for i, n in enumerate(names_of(call.rank("y")))]
    operands = [tensor(names)]
    if call.has("x"):
        shape = call.shape("x")
        mine = names[-len(shape) :] if len(shape) > 1 else [names[dim]]
        pairs = zip(mine, shape, strict=True)
        operands.append(tensor("1" if n == 1 and "!" not in name else name for name, n in pairs))
    if running:
        names[dim] = "r!"
    else:
        del names[dim]
    return signature(operands, [tensor(names)])


rule(aten.trapezoid, aten.trapz, spec=lambda call: _integral(call, running=False), linear=["y"])
rule(aten.cumulative_trapezoid, spec=lambda call: _integral(call, running=True), linear=["y"])


def _slopes(call: Call) -> str:
    """gradient: the dims along which slopes are taken stay whole."""
    dims = call.dims("dim") if call.get("dim") is not None else range(call.rank("self"))
    names = [n + "!" * (i in dims) for i, n in enumerate(names_of(call.rank("self")))]
    spacing = [tensor(f"p{i}!" for _ in s) for i, s in enumerate(call.shapes[1:])]
    return signature([tensor(names), *spacing], [tensor(names)] * len(call.results))


rule(aten.gradient, spec=_slopes, linear=["self"])


def _summed_to(call: Call) -> str:
    """sum_to_size: leading dims and those of wanted size 1 are summed."""
    shape, size = call.shape("self"), call.integers("size")
    names, offset = names_of(len(shape)), len(shape) - len(size)
    kept = [
        "1" if want == 1 != shape[offset + i] else names[offset + i] for i, want in enumerate(size)
    ]
    return signature([tensor(names)], [tensor(kept)])


def _summed_here(call: Call, sharding: Sharding) -> LocalCall:
    size = [size_at(dim) for dim in sharding.result().dims]
    return summed_to, (call.operands[0], size, tensor_of(call.node).dtype), {}


def summed_to(x: torch.Tensor, size: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """sum_to_size, in the dtype of the whole sum: one element alone would keep its own."""
    summed: torch.Tensor = aten.sum_to_size(x, size)
    return summed.to(dtype)


rule(
    aten.sum_to_size,
    spec=_summed_to, localize=_summed_here, linear=["self"],
    view=lambda call: call.out == call.shapes[0] != (),
)  # fmt: skip
