"""Rules of ops that write elements at places held in tensors.

The dim that is written may be split: every device writes what belongs to it. Where writes add up,
the dims of the index may be split too, which leaves a partial sum.
"""

from __future__ import annotations

import torch

from shardlang.ir.node import tensor_of
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall, shape_of
from shardlang.rules.index import at_of, index_dims, index_tensors, indexed, is_mask, placed, places
from shardlang.rules.indexed import along_dim, along_first_dims
from shardlang.rules.local_index import index_put_here, write_here
from shardlang.rules.notation import Refusal
from shardlang.rules.registry import rule
from shardlang.rules.writing import arrow, broadcast_shape, names, swapped, tensor, with_whole

aten = torch.ops.aten


def _adds(call: Call) -> bool:
    """Whether writes to one place add up, onto what is there."""
    if call.target in (aten.scatter_add.default, aten.index_add.default):
        return True
    if "include_self" in call.names:
        return call["reduce"] == "sum" and call.flag("include_self")
    return call.get("reduce") == "add" or call.flag("accumulate")


def _added(call: Call, dims: list[str]) -> str:
    """The tensor that is written to; added once where writes add up."""
    return ("+" if _adds(call) else "") + tensor(dims)


def _scatter(call: Call) -> str:
    """`self`, `index` and often `src` of one rank; dims where they differ stay whole."""
    shapes = call.shapes
    if not shapes[0]:
        index = [["m!"] if shape else [] for shape in shapes[1:]]
        return f"{_added(call, [])}, {arrow(index, [[]])}"
    at = call.dim()
    target, others = names(len(shapes[0])), [names(len(s), f"x{i}") for i, s in enumerate(shapes)]
    for i, sizes in enumerate(zip(*shapes, strict=True)):
        same = len(set(sizes[1:])) == 1
        for k, dims in enumerate(others[1:], start=1):
            if i == at:
                dims[i] = f"m{'' if same and _adds(call) else '!'}" if same else f"m{k}!"
            else:
                dims[i] = target[i] if len(set(sizes)) == 1 else f"{dims[i]}!"
        if i != at and len(set(sizes)) > 1:
            target[i] += "!"
    return f"{_added(call, target)}, {arrow(others[1:], [target])}"


def _written(call: Call) -> str:
    """Name of the factor of the dim that is written."""
    return f"d{call.dim()}"


def _local_write(call: Call, sharding: Sharding) -> LocalCall:
    if not call.shapes[0] or not sharding.factors[_written(call)].axes:
        return call.replace()
    op, (x, _, index, *rest), options = call.replace()
    at = at_of(sharding.factors[_written(call)])
    return write_here, (op, x, call.dim(), index, at, *rest), options


rule(
    aten.scatter.src, aten.scatter_add.default,
    spec=_scatter, linear=["self src"], localize=_local_write, indexes=along_dim,
)  # fmt: skip
rule(
    aten.scatter.value,
    spec=_scatter, linear=["self value"], localize=_local_write, indexes=along_dim,
)  # fmt: skip


def _reduce_linear(call: Call) -> list[str]:
    """Sums; means too, but of integers they are rounded."""
    exact = call.results[0].dtype.is_floating_point or call.results[0].dtype.is_complex
    linear = ("sum", "add", "mean") if exact else ("sum", "add")
    return ["self src"] if call["reduce"] in linear else []


rule(
    aten.scatter.reduce, aten.scatter_reduce.two,
    spec=_scatter, linear=_reduce_linear, localize=_local_write, keeps="self index src result",
    indexes=along_dim,
)  # fmt: skip
rule(aten.scatter.value_reduce, spec=_scatter, localize=_local_write, indexes=along_dim)


def _rows(call: Call) -> str:
    """One vector of indices along `dim`, and a source with a row for each."""
    shapes = call.shapes
    index = "i" if _adds(call) else "i!"
    if not shapes[0]:
        rest = [[index] if shape else [] for shape in shapes[1:]]
        return f"{_added(call, [])}, {arrow(rest, [[]])}"
    dims, at = names(len(shapes[0])), call.dim()
    operands = [[index] if shapes[1] else []]
    if call.has("value"):
        operands.append([])
    elif len(shapes) == 3:
        source = swapped(dims, at, index if shapes[1] else "1")
        operands.append(source if shapes[2] else [])
    return f"{_added(call, dims)}, {arrow(operands, [dims])}"


rule(
    aten.index_add.default,
    spec=_rows, linear=["self source"], localize=_local_write, keeps="index source",
)  # fmt: skip
rule(
    aten.index_copy.default,
    spec=_rows, linear=["self source"], localize=_local_write, keeps="index source",
)  # fmt: skip
rule(aten.index_fill.int_Tensor, spec=_rows, linear=["self value"], localize=_local_write)
rule(
    aten.index_fill.int_Scalar,
    spec=_rows, linear=["self value"], localize=_local_write,
)  # fmt: skip
rule(
    aten.index_reduce.default,
    spec=_rows, localize=_local_write, keeps="self index source result",
)  # fmt: skip


def _index_put(call: Call) -> str:
    chosen = indexed(call)
    if any(is_mask(one) for one in index_tensors(call)):
        return _masked_put(call)
    rank = len(call.shapes[0])
    target = [f"v{i}" if i in chosen else f"d{i}" for i in range(rank)]
    dims, own = index_dims(call)
    mark = "" if _adds(call) else "!"
    region = placed(rank, chosen, [dim + mark for dim in dims])
    values = _values(call, region)
    return f"{_added(call, target)}, {arrow([*_marked(own, mark), values], [target])}"


def _marked(own: list[list[str]], mark: str) -> list[list[str]]:
    return [[dim if dim == "1" else dim + mark for dim in dims] for dims in own]


def _values(call: Call, region: list[str]) -> list[str]:
    """Dims of the values, which are broadcast to the region that is written."""
    shape = call.shape("values")
    whole = {name: size for name, size in _sizes(call)}
    skip = len(region) - len(shape)
    return [
        "1" if size == 1 and whole[region[skip + i].rstrip("!")] != 1 else region[skip + i]
        for i, size in enumerate(shape)
    ]


def _sizes(call: Call) -> list[tuple[str, int]]:
    """Sizes of the dims of the region that an `index_put` writes."""
    shapes = [shape_of(tensor_of(one)) for one in index_tensors(call)]
    joint = broadcast_shape(shapes)
    kept = [(f"d{i}", size) for i, size in enumerate(call.shapes[0])]
    return [*kept, *((f"i{i}", size) for i, size in enumerate(joint))]


def _masked_put(call: Call) -> str:
    """One mask over leading dims, and values that do not depend on how many places it has."""
    chosen = indexed(call)
    mask = tensor_of(index_tensors(call)[0])
    rank, first = len(call.shapes[0]), chosen[0]
    kept = rank - mask.dim()
    values = call.shape("values")
    if len(chosen) > 1 or first or len(values) > kept or _adds(call):
        raise Refusal("a boolean index takes as many values as it has true places")
    dims = names(rank)
    tail = dims[rank - len(values) :] if values else []
    sizes = call.shapes[0][rank - len(values) :] if values else ()
    spread = ["1" if a == 1 != b else d for a, b, d in zip(values, sizes, tail, strict=True)]
    return arrow([dims, dims[: mask.dim()], spread], [dims])


def _local_index_put(call: Call, sharding: Sharding) -> LocalCall:
    if any(is_mask(one) for one in index_tensors(call)):
        return call.replace()
    at = places(call, sharding)
    if not any(at):
        return call.replace()
    x, values = call.operand("self"), call.operand("values")
    accumulate = call.flag("accumulate")
    return index_put_here, (x, call.operand_list("indices"), at, values, accumulate), {}


rule(
    aten.index_put.default, aten._unsafe_index_put.default,
    spec=_index_put, linear=["self values"], localize=_local_index_put, indexes=along_first_dims,
)  # fmt: skip


def _all_whole(call: Call) -> str:
    operands = [
        with_whole(names(len(shape), f"x{i}d"), range(len(shape)))
        for i, shape in enumerate(call.shapes)
    ]
    result = names(len(call.out), "y")
    return arrow(operands, [with_whole(result, range(len(result)))])


rule(aten.masked_scatter.default, spec=_all_whole, linear=["self source"])
rule(aten.put.default, spec=_all_whole, linear=["self source"], keeps="index source")
