"""Rules of ops that pick parts of dims at places known in advance: select, diagonals, triangles."""

from __future__ import annotations

import torch

from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.local_shape import place, select_here, select_scatter_here, triangle_here
from shardlang.rules.notation import Refusal
from shardlang.rules.registry import rule
from shardlang.rules.writing import arrow, names, swapped, tensors, with_whole, without

aten = torch.ops.aten


def _select(call: Call) -> str:
    """The device that holds the index gives the result, the others zeros: a partial sum."""
    dims = names(len(call.shapes[0]))
    at = call.dim()
    summed = call.results[0].dtype != torch.bool
    return arrow([swapped(dims, at, "k" if summed else "k!")], [without(dims, at)])


def _local_select(call: Call, sharding: Sharding) -> LocalCall:
    dim = sharding.factors["k"]
    if not dim.axes:
        return call.replace()
    index = call.integer("index") % dim.size
    return select_here, (call.operands[0], call.dim(), index, place(dim)), {}


rule(
    aten.select.int, aten.select_copy.int,
    spec=_select, linear=["self"], localize=_local_select,
)  # fmt: skip


def _select_scatter(call: Call) -> str:
    dims = names(len(call.shapes[0]))
    at = call.dim()
    whole = swapped(dims, at, "k")
    return arrow([whole, without(dims, at)], [whole])


def _local_select_scatter(call: Call, sharding: Sharding) -> LocalCall:
    dim = sharding.factors["k"]
    if not dim.axes:
        return call.replace()
    index = call.integer("index") % dim.size
    return select_scatter_here, (*call.operands, call.dim(), index, place(dim)), {}


rule(
    aten.select_scatter.default,
    spec=_select_scatter, linear=["self src"], localize=_local_select_scatter,
)  # fmt: skip


def _unbind(call: Call) -> str:
    """
    Raises:
        Refusal: there is nothing to give.
    """
    dims = names(len(call.shapes[0]))
    at = call.dim()
    if not call.shapes[0][at]:
        raise Refusal("a dim of size 0 gives no result at all")
    results = [without(dims, at)] * len(call.result_shapes)
    return f"{tensors([swapped(dims, at, 'k!')])} -> {tensors(results)}"


rule(aten.unbind.int, aten.unbind_copy.int, spec=_unbind, linear=["self"])


def _diagonal(call: Call) -> str:
    dims = names(len(call.shapes[0]))
    pair = {call.integer("dim1") % len(dims), call.integer("dim2") % len(dims)}
    rest = [dim for i, dim in enumerate(dims) if i not in pair]
    return arrow([with_whole(dims, pair)], [[*rest, "n!"]])


rule(
    aten.diagonal.default, aten.diagonal_copy.default, aten.linalg_diagonal.default,
    spec=_diagonal, linear=lambda call: [call.slots[0].name],
)  # fmt: skip


def _diagonal_scatter(call: Call) -> str:
    whole, diagonal = _diagonal(call).split(" -> ")
    return f"{whole}, {diagonal} -> {whole}"


rule(aten.diagonal_scatter.default, spec=_diagonal_scatter, linear=["self src"])


def _diag_embed(call: Call) -> str:
    dims = names(len(call.shapes[0]) - 1)
    rank = len(call.out)
    pair = sorted((call.integer("dim1") % rank, call.integer("dim2") % rank))
    result = list(dims)
    for i in pair:
        result.insert(i, f"m{i}!")
    return arrow([[*dims, "n!"]], [result])


rule(aten.diag_embed.default, spec=_diag_embed, linear=["self"])


def _diag(call: Call) -> str:
    return "a! b! -> n!" if len(call.shapes[0]) == 2 else "n! -> a! b!"


rule(aten.diag.default, spec=_diag, linear=["self"])
rule(aten.diagflat.default, spec=lambda call: arrow(
    [with_whole(names(len(call.shapes[0])), range(len(call.shapes[0])))], [["m!", "n!"]]
), linear=["self"])  # fmt: skip
rule(aten.trace.default, spec="a! b! -> .", linear=["self"])


def _local_triangle(call: Call, sharding: Sharding) -> LocalCall:
    rows, columns = sharding.factors["r"], sharding.factors["c"]
    if not rows.axes and not columns.axes:
        return call.replace()
    where = (place(rows), place(columns))
    return triangle_here, (call.target, call.operands[0], call["diagonal"], *where), {}


rule(
    aten.tril.default, aten.triu.default,
    spec="d... r c -> d... r c", linear=["self"], localize=_local_triangle,
)  # fmt: skip
