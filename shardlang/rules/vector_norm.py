"""Vector norms and distances: over split dims, from global sums, maxima and minima."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx

from shardlang.ir.node import tensor_of
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call
from shardlang.rules.op_rule import Emit
from shardlang.rules.reduce import extreme, root
from shardlang.rules.registry import rule
from shardlang.rules.shapes import reduction, signature, some_dims
from shardlang.rules.softmax import in_dtype, in_wide
from shardlang.rules.writing import broadcast_shape, tensor
from shardlang.rules.writing import names as names_of

aten = torch.ops.aten


def powered(emit: Emit, x: fx.Node, p: float) -> fx.Node:
    """`x ** p` for x >= 0, whose gradient at zero is zero."""
    if p == 1:
        return x
    zero = emit(aten.eq.Scalar, x, 0)
    safe = emit(aten.masked_fill.Scalar, x, zero, 1)
    return emit(aten.masked_fill.Scalar, emit(aten.pow.Tensor_Scalar, safe, p), zero, 0)


def vector_norm(emit: Emit, x: fx.Node, p: float, dims: Sequence[int]) -> fx.Node:
    """The p-norm over `dims`, which stay with size 1; gradients at zero are zero."""
    if p == 0:
        present = emit(aten.ne.Scalar, x, 0)
        count = emit(aten.sum.dim_IntList, present, list(dims), True)
        return emit(aten.to.dtype, count, tensor_of(x).dtype)
    if p == 2 and not tensor_of(x).is_complex():
        squares = emit(aten.mul.Tensor, x, x)
        return root(emit, emit(aten.sum.dim_IntList, squares, list(dims), True))
    size = emit(aten.abs.default, x)
    if math.isinf(p):
        return extreme(emit, size, dims, p > 0)
    total = emit(aten.sum.dim_IntList, powered(emit, size, p), list(dims), True)
    return powered(emit, total, 1 / p)


def _order(call: Call) -> float:
    """p of the norm; None is 2."""
    name = "ord" if "ord" in call.names else "p"
    return 2.0 if call.get(name) in (None, "fro") else float(call.number(name))


def _keepdim(call: Call) -> bool:
    return call.flag("keepdim")


def _vector(call: Call) -> str:
    mark = "~" if _order(call) > 0 else "!"
    return reduction(call, some_dims(call), mark, _keepdim(call))


def _lower_norm(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    dims, out = list(some_dims(call)), call.results[0].dtype
    x = call.operand("self")
    wanted = call.dtype("dtype")
    if wanted is not None:
        x = in_dtype(emit, x, wanted)
    made = vector_norm(emit, in_wide(emit, x), _order(call), dims)
    if dims and not _keepdim(call):
        made = emit(aten.squeeze.dims, made, dims)
    return in_dtype(emit, made, out)


rule(
    aten.linalg_vector_norm, aten.norm, aten.frobenius_norm.dim,
    spec=_vector, lower=_lower_norm, keeps="self result",
)  # fmt: skip


def _is_vector(call: Call) -> bool:
    """Whether linalg.norm takes a vector norm: no order, one dim, or the Frobenius norm."""
    order, dim = call["ord"], call["dim"]
    count = len(call.shapes[0]) if dim is None else len(call.dims("dim"))
    return order is None or order == "fro" or count == 1


def _any_norm(call: Call) -> str:
    if _is_vector(call):
        return _vector(call)
    return reduction(call, some_dims(call), "!", _keepdim(call))


rule(
    aten.linalg_norm, aten.linalg_matrix_norm,
    spec=_any_norm, lower=_lower_norm, keeps="self A result",
)  # fmt: skip
rule(aten.nuclear_norm, spec=lambda call: reduction(call, some_dims(call), "!", _keepdim(call)))


def _dist(call: Call) -> str:
    """A norm of the difference of two broadcast operands."""
    full = broadcast_shape(call.shapes)
    mark = "~" if float(call.number("p")) > 0 else "!"
    return signature([tensor(_marked(s, full, range(len(full)), mark)) for s in call.shapes], ["."])


def _marked(
    shape: tuple[int, ...], full: tuple[int, ...], dims: Sequence[int], mark: str
) -> list[str]:
    """The factors of a broadcast operand, with `mark` on some dims of the full shape."""
    offset = len(full) - len(shape)
    return [
        ("1" if size != full[offset + i] else f"d{offset + i}" + mark * (offset + i in dims))
        for i, size in enumerate(shape)
    ]


def _lower_dist(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    apart = in_wide(emit, emit(aten.sub.Tensor, call.operand("self"), call.operand("other")))
    dims = list(range(len(tensor_of(apart).shape)))
    made = vector_norm(emit, apart, float(call.number("p")), dims)
    if dims:
        made = emit(aten.squeeze.dims, made, dims)
    return in_dtype(emit, made, call.results[0].dtype)


rule(aten.dist, spec=_dist, lower=_lower_dist, keeps="self other result")


def _last_of_two(call: Call) -> str:
    """pairwise_distance: the last dim of two broadcast operands."""
    full = broadcast_shape(call.shapes)
    last = len(full) - 1
    out = names_of(last) + ["1"] * _keepdim(call)
    mark = "~" if float(call.number("p")) > 0 else "!"
    operands = [tensor(_marked(s, full, [last], mark)) for s in call.shapes]
    return signature(operands, [tensor(out)])


def _lower_pairwise(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    apart = emit(aten.sub.Tensor, call.operand("x1"), call.operand("x2"))
    apart = in_wide(emit, emit(aten.add.Tensor, apart, call.number("eps")))
    last = len(tensor_of(apart).shape) - 1
    made = vector_norm(emit, apart, float(call.number("p")), [last])
    if not _keepdim(call):
        made = emit(aten.squeeze.dims, made, [last])
    return in_dtype(emit, made, call.results[0].dtype)


rule(
    aten.pairwise_distance,
    spec=_last_of_two, lower=_lower_pairwise, keeps="x1 x2 result",
)  # fmt: skip


def _similar(call: Call) -> str:
    full = broadcast_shape(call.shapes)
    dim = call.integer("dim") % max(len(full), 1)
    names = [n for i, n in enumerate(names_of(len(full))) if i != dim]
    return signature([tensor(_marked(s, full, [dim], "~")) for s in call.shapes], [tensor(names)])


def _lower_similarity(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Each operand over its own norm (at least eps), then the sum of products."""
    full = broadcast_shape(call.shapes)
    dim, parts = call.integer("dim") % len(full), []
    for name in ("x1", "x2"):
        x = in_wide(emit, call.operand(name))
        if tuple(tensor_of(x).shape) != full:
            x = emit(aten.expand.default, x, list(full))
        size = vector_norm(emit, x, 2.0, [dim])
        least = emit(aten.clamp_min.default, emit(aten.detach.default, size), call.number("eps"))
        small = emit(aten.lt.Scalar, size, call.number("eps"))
        parts.append(emit(aten.div.Tensor, x, emit(aten.where.self, small, least, size)))
    product = emit(aten.mul.Tensor, *parts)
    return in_dtype(emit, emit(aten.sum.dim_IntList, product, [dim]), call.results[0].dtype)


rule(aten.cosine_similarity, spec=_similar, lower=_lower_similarity)


def _cdist(call: Call) -> str:
    """Distances between all rows of two batches: the feature dim stays whole."""
    batch = call.out[:-2]
    names = names_of(len(batch))
    left, right = (_marked(s[:-2], batch, (), "") for s in call.shapes)
    return signature(
        [tensor([*left, "m", "k!"]), tensor([*right, "n", "k"])], [tensor([*names, "m", "n"])]
    )


rule(
    aten.cdist, aten._cdist_forward, aten._euclidean_dist,
    spec=_cdist, passes=False, keeps="x1 x2 result",
)  # fmt: skip
rule(aten.pdist, spec="n! k! -> m!", passes=False, keeps="self result")


def _renormed(call: Call) -> str:
    """renorm: every slice along a dim has its own norm over the others."""
    names = names_of(len(call.out))
    marked = [n if i == call.dim() else n + "!" for i, n in enumerate(names)]
    return signature([tensor(marked)], [tensor(names)])


rule(aten.renorm, spec=_renormed)


def _weight_norm(call: Call) -> str:
    """v over its norm for each index of one dim, times g."""
    rank = call.rank("v")
    names, dim = names_of(rank), call.integer("dim")
    marked = [n if i == dim % rank and dim != -1 else n + "!" for i, n in enumerate(names)]
    size = [n if shape > 1 else "1" for n, shape in zip(names, call.shape("g"), strict=False)]
    return signature([tensor(marked), tensor(size)], [tensor(names)])


rule(aten._weight_norm, spec=_weight_norm)
