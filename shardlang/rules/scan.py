"""Running sums and products, and full products: a split dim needs the totals of all shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.rules import local
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.local_shape import place
from shardlang.rules.op_rule import Emit
from shardlang.rules.registry import rule
from shardlang.rules.shapes import fixed, one_dim, reduction, signature
from shardlang.rules.softmax import in_dtype, in_wide
from shardlang.rules.writing import names as names_of
from shardlang.rules.writing import tensor

aten = torch.ops.aten


def _totals_spec(call: Call) -> str:
    names, totals = names_of(call.rank("x")), names_of(call.rank("x"))
    totals[call.integer("dim")] = f"w={len(call.sequence('starts'))}!"
    return signature([tensor(names)], [tensor(totals)])


def _here(call: Call, sharding: Sharding) -> LocalCall:
    """Hand over where the device's shard of the dim lies."""
    dim = sharding.operand(0).dims[call.integer("dim")]
    return call.replace(at=place(dim)) if dim.axes else call.replace()


rule(local.run_totals, spec=_totals_spec, localize=_here, passes=False)


def _scanned_spec(call: Call) -> str:
    names, totals = names_of(call.rank("x")), names_of(call.rank("x"))
    totals[call.integer("dim")] = "w!"
    return signature([tensor(names), tensor(totals)], [tensor(names)])


rule(local.scanned, spec=_scanned_spec, localize=_here)


def _starts(dim: DimLayout) -> list[int]:
    """Where each stretch of consecutive indices of one device starts."""
    coords: list[dict[str, int]] = [{}]
    for axis in dim.axes:
        coords = [{**at, axis.name: i} for at in coords for i in range(axis.size)]
    found = []
    for at in coords:
        held = dim.indices(at)
        found += [i for i, before in zip(held, [None, *held], strict=False) if before != i - 1]
    return sorted(found)


def _scan(product: bool) -> Callable[[Call, Sharding, Emit], fx.Node]:
    def lower(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
        dim, out = call.dim(), call.results[0].dtype
        x = in_wide(emit, in_dtype(emit, call.operand("self"), out))
        starts = _starts(sharding.operand(0).dims[dim])
        totals = emit(local.run_totals, x, dim, starts, product)
        return in_dtype(emit, emit(local.scanned, x, totals, dim, starts, product), out)

    return lower


def _scanned_dim(call: Call) -> str:
    return fixed(call, one_dim(call), "~")


rule(
    aten.cumsum.default,
    spec=_scanned_dim, linear=["self"], lower=_scan(False), kind=OpKind.RUNNING,
)  # fmt: skip
rule(aten.cumprod.default, spec=_scanned_dim, lower=_scan(True), keeps="self result")
rule(
    aten.cummax.default, aten.cummin.default,
    spec=lambda call: fixed(call, one_dim(call)), keeps="self result.1",
)  # fmt: skip
rule(
    aten.logcumsumexp.default, aten._logcumsumexp.default,
    spec=lambda call: fixed(call, one_dim(call)), keeps="self result",
)  # fmt: skip


def _product_dims(call: Call) -> Sequence[int]:
    return one_dim(call) if "dim" in call.names else tuple(range(len(call.shapes[0])))


def _product_spec(call: Call) -> str:
    return reduction(call, _product_dims(call), "~", call.flag("keepdim"))


def _lower_product(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """The product of the products of all shards."""
    out = call.results[0].dtype
    x = in_wide(emit, in_dtype(emit, call.operand("self"), out))
    for dim in _product_dims(call):
        layout = sharding.operand(0).dims[dim]
        if layout.axes:
            x = emit(local.run_totals, x, dim, _starts(layout), True)
    target, args, kwargs = call.replace(self=x, dtype=None)
    return in_dtype(emit, emit(target, *args, **kwargs), out)


rule(
    aten.prod.default, aten.prod.dim_int,
    spec=_product_spec, lower=_lower_product, keeps="self result",
)  # fmt: skip
