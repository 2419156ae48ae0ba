"""Rules of ops that read elements at places held in tensors.

The indexed dim may be split: every device reads what it holds and zeros elsewhere, which leaves a
partial sum (for booleans, which cannot be summed, it stays whole).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from shardlang.ir.device_values import LocalIndices, LocalSize, LocalStart, size_at
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.node import tensor_of
from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.rules.call import Call, LocalCall, shape_of
from shardlang.rules.indexed import along_dim, along_first_dims
from shardlang.rules.local_index import gather_here, index_here, one_hot_here, take_along_here
from shardlang.rules.local_shape import place
from shardlang.rules.notation import Refusal
from shardlang.rules.registry import rule
from shardlang.rules.writing import arrow, broadcast_shape, names, swapped, with_whole

aten = torch.ops.aten

AtArgument = tuple[int | LocalStart | LocalIndices, int | LocalSize, int]


def at_of(dim: DimLayout) -> AtArgument:
    """Where a device lies in a dim, as an argument of the local functions."""
    return place(dim), size_at(dim), dim.size


def summed(call: Call, name: str) -> str:
    """A factor whose split leaves a partial sum, whole where the result cannot be summed."""
    return f"{name}!" if call.results[0].dtype == torch.bool else name


def is_mask(node: fx.Node) -> bool:
    """Whether an index is a mask of booleans."""
    return tensor_of(node).dtype in (torch.bool, torch.uint8)


def indexed(call: Call) -> list[int]:
    """The dims that have an index tensor."""
    return [i for i, one in enumerate(call.operand_list("indices")) if one is not None]


def index_tensors(call: Call) -> list[fx.Node]:
    """The index tensors, in the order of their dims."""
    return [one for one in call.operand_list("indices") if one is not None]


def index_dims(call: Call) -> tuple[list[str], list[list[str]]]:
    """Broadcast dims of the index tensors, and each tensor's own."""
    shapes = [shape_of(tensor_of(one)) for one in index_tensors(call)]
    joint = broadcast_shape(shapes)
    dims = names(len(joint), "i")
    return dims, [_aligned(shape, joint, dims) for shape in shapes]


def _aligned(shape: Sequence[int], joint: Sequence[int], dims: Sequence[str]) -> list[str]:
    skip = len(joint) - len(shape)
    return [
        "1" if size == 1 and joint[skip + i] != 1 else dims[skip + i]
        for i, size in enumerate(shape)
    ]


def placed(rank: int, chosen: Sequence[int], dims: Sequence[str]) -> list[str]:
    """Dims of an advanced indexing: `dims` in place of the indexed ones, or first if those lie
    apart."""
    kept = [f"d{i}" if i not in chosen else "" for i in range(rank)]
    together = list(chosen) == list(range(chosen[0], chosen[0] + len(chosen)))
    front = kept[: chosen[0]] if together else []
    back = kept[chosen[0] :] if together else kept
    return [*front, *dims, *(dim for dim in back if dim)]


def _index(call: Call) -> str:
    chosen = indexed(call)
    if any(is_mask(one) for one in index_tensors(call)):
        raise Refusal("a boolean index gives a shape that depends on the data")
    rank = len(call.shapes[0])
    dims, own = index_dims(call)
    source = [summed(call, f"v{i}") if i in chosen else f"d{i}" for i in range(rank)]
    return arrow([source, *own], [placed(rank, chosen, dims)])


def places(call: Call, sharding: Sharding) -> list[AtArgument | None]:
    """Where the indexed dims lie, None for those that are not split."""
    found: list[AtArgument | None] = []
    for i, one in enumerate(call.operand_list("indices")):
        split = one is not None and sharding.factors[f"v{i}"].axes
        found.append(at_of(sharding.factors[f"v{i}"]) if split else None)
    return found


def _local_index(call: Call, sharding: Sharding) -> LocalCall:
    at = places(call, sharding)
    if not any(at):
        return call.replace()
    return index_here, (call.operands[0], call.operand_list("indices"), at), {}


rule(
    aten.index.Tensor, aten._unsafe_index.Tensor, kind=OpKind.INDEX, indexes=along_first_dims,
    spec=_index, linear=["self"], localize=_local_index,
)  # fmt: skip


def _index_select(call: Call) -> str:
    dims, at = names(len(call.shapes[0])), call.dim() if call.shapes[0] else 0
    index = ["i"] if call.shapes[1] else []
    if not dims:
        return arrow([dims, ["i!"] if index else []], [dims])
    source = swapped(dims, at, summed(call, "v"))
    return arrow([source, index], [swapped(dims, at, "i" if index else "1")])


def _local_index_select(call: Call, sharding: Sharding) -> LocalCall:
    if not sharding.factors["v"].axes:
        return call.replace()
    x, index = call.operands
    skipped: list[fx.Node | None] = [None] * call.dim()
    at = [*(None for _ in skipped), at_of(sharding.factors["v"])]
    return index_here, (x, [*skipped, index], at), {}


rule(
    aten.index_select.default,
    spec=_index_select, linear=["self"], localize=_local_index_select, indexes=along_dim,
)  # fmt: skip


def _gather(call: Call) -> str:
    """Outside `dim` the index may be shorter than the tensor, which is then read from its start."""
    shape, index = call.shapes
    if not shape or len(shape) != len(index):
        places = [f"j{i}!" for i in range(len(index))]
        return arrow([[f"x{i}!" for i in range(len(shape))], places], [places])
    at = call.dim()
    result = [f"j{i}={size}" for i, size in enumerate(index)]
    source = [
        f"j{i}" if a == b else f"[j{i}={b}|r{i}={a - b}]"
        for i, (a, b) in enumerate(zip(shape, index, strict=True))
    ]
    return arrow([swapped(source, at, summed(call, "v")), result], [result])


def _local_gather(call: Call, sharding: Sharding) -> LocalCall:
    dim = sharding.factors.get("v")
    if dim is None or not dim.axes:
        return call.replace()
    x, index = call.operands
    return gather_here, (x, call.dim(), index, at_of(dim)), {}


rule(
    aten.gather.default,
    spec=_gather, linear=["self"], localize=_local_gather, keeps="self index",
    indexes=along_dim,
)  # fmt: skip


def _take_along(call: Call) -> str:
    shape, index = call.shapes
    if call["dim"] is None:
        whole = with_whole(names(len(shape)), range(len(shape)))
        return arrow([whole, with_whole(names(len(index), "i"), range(len(index)))], [["n!"]])
    at = call.dim()
    result = names(len(call.out))
    source = swapped(_aligned(shape, call.out, result), at, summed(call, "v"))
    chosen = swapped(_aligned(index, call.out, result), at, result[at])
    return arrow([source, chosen], [result])


def _local_take_along(call: Call, sharding: Sharding) -> LocalCall:
    dim = sharding.factors.get("v")
    if dim is None or not dim.axes:
        return call.replace()
    x, index = call.operands
    return take_along_here, (x, index, call.dim(), at_of(dim)), {}


rule(
    aten.take_along_dim.default,
    spec=_take_along, linear=["self"], localize=_local_take_along, keeps="self indices",
)  # fmt: skip


def _take(call: Call) -> str:
    """Places in the flattened tensor."""
    whole = with_whole(names(len(call.shapes[0])), range(len(call.shapes[0])))
    index = names(len(call.shapes[1]), "i")
    return arrow([whole, index], [index])


rule(aten.take.default, spec=_take, linear=["self"], keeps="self index")


def _local_one_hot(call: Call, sharding: Sharding) -> LocalCall:
    classes = sharding.factors["k"]
    if not classes.axes:
        return call.replace()
    return one_hot_here, (call.operands[0], place(classes), size_at(classes)), {}


rule(aten.one_hot.default, spec="d... -> d... k", localize=_local_one_hot, detached=True)
