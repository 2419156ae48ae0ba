"""Rules of ops that order elements or look them up in an ordered row; that dim stays whole."""

from __future__ import annotations

import torch

from shardlang.ir.traits import OpKind
from shardlang.rules.call import Call
from shardlang.rules.registry import rule
from shardlang.rules.writing import arrow, names, swapped

aten = torch.ops.aten


def _ordered(call: Call, at: int, after: str = "n!") -> str:
    dims = names(len(call.shapes[0]))
    if not dims:
        return arrow([[]], [[]] * len(call.results))
    result = swapped(dims, at, after)
    return arrow([swapped(dims, at, "n!")], [result] * len(call.results))


rule(
    aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argsort.stable,
    spec=lambda call: _ordered(call, call.dim() if call.shapes[0] else 0),
    keeps="result.1", kind=OpKind.CHOICE,
)  # fmt: skip
rule(aten.msort.default, spec=lambda call: _ordered(call, 0), kind=OpKind.CHOICE)
rule(
    aten.topk.default,
    spec=lambda call: _ordered(call, call.dim() if call.shapes[0] else 0, "k!"),
    keeps="result.1", kind=OpKind.CHOICE,
)  # fmt: skip


def _searchsorted(call: Call) -> str:
    """Rows of an ordered tensor go with rows of values; one ordered vector serves all."""
    dims = names(len(call.out))
    row = call.shapes[0]
    ordered = [*dims[:-1], "n!"] if len(row) > 1 else ["n!"]
    operands = [ordered]
    if call.has("self"):
        operands.append(dims)
    if call.has("sorter"):
        operands.append(ordered)
    if len(row) > 1 and dims:
        operands[1:2] = [[*dims[:-1], "m"]] if call.has("self") else []
        return arrow(operands, [[*dims[:-1], "m"]])
    return arrow(operands, [dims])


rule(
    aten.searchsorted.Tensor, aten.searchsorted.Scalar, spec=_searchsorted, detached=True,
)  # fmt: skip
