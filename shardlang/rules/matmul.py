"""Contractions: the summed factor is inner, so splitting it leaves a partial sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch

from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.registry import rule
from shardlang.rules.shapes import aligned, broadcast, fixed, signature
from shardlang.rules.writing import broadcast_shape, tensor
from shardlang.rules.writing import names as names_of

aten = torch.ops.aten

rule(
    aten.linear, spec="b... i, o i, +o? -> b... o",
    linear=["input bias", "weight bias"], passes=False, kind=OpKind.PRODUCT,
)  # fmt: skip
rule(aten.mm, spec="m k, k n -> m n", linear=["self", "mat2"], passes=False, kind=OpKind.PRODUCT)
rule(
    aten.bmm,
    spec="b m k, b k n -> b m n", linear=["self", "mat2"], passes=False, kind=OpKind.PRODUCT,
)  # fmt: skip
rule(aten.mv, spec="m k, k -> m", linear=["self", "vec"], passes=False, kind=OpKind.PRODUCT)
rule(
    aten.dot, aten.vdot,
    spec="k, k -> .", linear=["self", "tensor", "other"], passes=False, kind=OpKind.PRODUCT,
)  # fmt: skip
rule(aten.outer, aten.ger, spec="m, n -> m n", linear=["self", "vec2"])
rule(
    aten.bilinear, spec="b... i, b... j, o i j, +o? -> b... o",
    linear=["input1 bias", "input2 bias", "weight bias"], passes=False, kind=OpKind.PRODUCT,
)  # fmt: skip


def _matmul(call: Call) -> str:
    """matmul of any two ranks, batch dims broadcast."""
    left, right = call.shapes
    batch = call.out[: max(len(left), len(right)) - 2] if max(len(left), len(right)) > 2 else ()
    a = [*aligned(left[:-2], batch, "b"), *("m", "k")[-min(len(left), 2) :]]
    b = [*aligned(right[:-2], batch, "b"), *("k", "n")[: min(len(right), 2)]]
    out = [*names_of(len(batch), "b"), *["m"] * (len(left) > 1), *["n"] * (len(right) > 1)]
    return signature([tensor(a), tensor(b)], [tensor(out)])


rule(
    aten.matmul, aten.linalg_matmul,
    spec=_matmul, linear=["self", "other"], passes=False, kind=OpKind.PRODUCT,
)  # fmt: skip


def _added(call: Call, dims: str, product: str) -> str:
    """`self` broadcast to the result and added to a product of two operands."""
    names = dims.split()
    offset = len(names) - call.rank("self")
    mine = [
        names[offset + i] if size == call.out[offset + i] else "1"
        for i, size in enumerate(call.shape("self"))
    ]
    return f"+{tensor(mine)}, {product} -> {dims}"


def _linear_in(left: str, right: str) -> list[str]:
    return [f"self {left}", f"self {right}"]


rule(
    aten.addmm, spec=lambda call: _added(call, "m n", "m k, k n"),
    linear=_linear_in("mat1", "mat2"), passes=False, kind=OpKind.PRODUCT,
)  # fmt: skip
rule(
    aten._addmm_activation, spec=lambda call: _added(call, "m n", "m k!, k n").removeprefix("+"),
    passes=False,
)  # fmt: skip
rule(
    aten.addmv, spec=lambda call: _added(call, "m", "m k, k"),
    linear=_linear_in("mat", "vec"), passes=False, kind=OpKind.PRODUCT,
)  # fmt: skip
rule(
    aten.baddbmm, spec=lambda call: _added(call, "b m n", "b m k, b k n"),
    linear=_linear_in("batch1", "batch2"), passes=False, kind=OpKind.PRODUCT,
)  # fmt: skip
rule(
    aten.addbmm, spec=lambda call: _added(call, "m n", "b m k, b k n"),
    linear=_linear_in("batch1", "batch2"), passes=False, kind=OpKind.PRODUCT,
)  # fmt: skip
rule(
    aten.addr, spec=lambda call: _added(call, "m n", "m, n").removeprefix("+"),
    linear=_linear_in("vec1", "vec2"),
)  # fmt: skip


def _chain(call: Call) -> str:
    """A product of matrices; the first and the last may be vectors."""
    operands, place = [], 0
    for index, shape in enumerate(call.shapes):
        if len(shape) == 1 and index == 0:
            operands.append("f0")
            continue
        names = [f"f{place}", f"f{place + 1}"][: len(shape)]
        operands.append(tensor(names))
        place += len(shape) - 1
    first = [] if len(call.shapes[0]) == 1 else ["f0"]
    last = [] if len(call.shapes[-1]) == 1 else [f"f{place}"]
    return signature(operands, [tensor([*first, *last])])


def _each_of(name: str) -> Callable[[Call], list[str]]:
    """Linear in every tensor of a list, one at a time."""
    return lambda call: [f"{name}.{i}" for i in range(len(call.sequence(name)))]


rule(
    aten.linalg_multi_dot,
    spec=_chain, linear=_each_of("tensors"), passes=False, kind=OpKind.PRODUCT,
)  # fmt: skip
rule(aten.chain_matmul, spec=_chain, linear=_each_of("matrices"), passes=False, kind=OpKind.PRODUCT)


def _inner(call: Call) -> str:
    """Contraction of the last dims; a plain product where an operand has no dims."""
    left, right = call.shapes
    if not left or not right:
        return broadcast(call)
    a, b = names_of(len(left) - 1, "a"), names_of(len(right) - 1, "b")
    return signature([tensor([*a, "k"]), tensor([*b, "k"])], [tensor([*a, *b])])


rule(aten.inner, spec=_inner, linear=["self", "other"], passes=False, kind=OpKind.PRODUCT)


def _tensordot(call: Call) -> str:
    """Contraction of listed dims; a listed dim of size 1 is broadcast against the other's."""
    left, right = call.shapes
    a, b = names_of(len(left), "a"), names_of(len(right), "b")
    mine = [d % len(left) for d in call.integers("dims_self")]
    theirs = [d % len(right) for d in call.integers("dims_other")]
    out = [n for i, n in enumerate(a) if i not in mine]
    out += [n for i, n in enumerate(b) if i not in theirs]
    for i, j in zip(mine, theirs, strict=True):
        if left[i] != right[j]:
            a[i], b[j] = ("1", b[j]) if left[i] == 1 else (a[i], "1")
        else:
            b[j] = a[i]
    return signature([tensor(a), tensor(b)], [tensor(out)])


rule(aten.tensordot, spec=_tensordot, linear=["self", "other"], passes=False, kind=OpKind.PRODUCT)


def _labels(equation: str, shapes: list[tuple[int, ...]]) -> tuple[list[list[str]], str | None]:
    """The factor of every dim of every einsum operand, and the text of the output."""
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = max(
        len(shape) - len(term.replace("...", "")) if "..." in term else 0
        for term, shape in zip(terms, shapes, strict=True)
    )
    found = []
    for term, shape in zip(terms, shapes, strict=True):
        before, dots, after = term.partition("...")
        count = len(shape) - len(before) - len(after) if dots else 0
        found.append([*before, *(f"e{i}" for i in range(spare - count, spare)), *after])
    if "->" not in equation:
        counts = Counter("".join(terms).replace(".", ""))
        single = "".join(sorted(name for name, n in counts.items() if n == 1))
        right = ("..." if spare else "") + single
    dots = " ".join(f"e{i}" for i in range(spare))
    return found, " ".join(f" {dots} ".join(" ".join(part) for part in right.split("...")).split())


def _einsum(call: Call) -> str:
    """einsum by its own equation; a label twice in one operand stays whole."""
    labels, output = _labels(call.text("equation"), call.shapes)
    sizes: dict[str, int] = {}
    for names, shape in zip(labels, call.shapes, strict=True):
        for name, size in zip(names, shape, strict=True):
            sizes[name] = size if sizes.get(name, 1) == 1 else sizes[name]
    twice = {name for names in labels for name, n in Counter(names).items() if n > 1}
    operands = [
        tensor(
            "1" if size != sizes[name] else name + "!" * (name in twice)
            for name, size in zip(names, shape, strict=True)
        )
        for names, shape in zip(labels, call.shapes, strict=True)
    ]
    return signature(operands, [output or "."])


rule(
    aten.einsum,
    spec=_einsum, linear=_each_of("tensors"), passes=False, kind=OpKind.PRODUCT,
)  # fmt: skip


def _kron(call: Call) -> str:
    """Every dim of the result is a dim of the first, times one of the second."""
    rank = len(call.out)
    padded = [(1,) * (rank - len(shape)) + shape for shape in call.shapes]
    a, b = names_of(rank, "a"), names_of(rank, "b")
    out = [f"({a[i]}={padded[0][i]} {b[i]}={padded[1][i]})" for i in range(rank)]
    left, right = (names[rank - len(s) :] for names, s in zip((a, b), call.shapes, strict=True))
    return signature([tensor(left), tensor(right)], [tensor(out)])


rule(aten.kron, spec=_kron, linear=["self", "other"])


def _vector_dim(call: Call) -> int:
    """The dim of cross: where none is given, the first of size 3."""
    if call["dim"] is None:
        return next(i for i, size in enumerate(call.shapes[0]) if size == 3)
    return call.integer("dim")


def _along_dim(call: Call) -> str:
    """cross: the vector dim stays whole, all others are broadcast."""
    dim, rank = _vector_dim(call), len(call.out)
    mark = [n + "!" * (i == dim % rank) for i, n in enumerate(names_of(rank))]
    operands = []
    for shape in call.shapes:
        names = aligned(shape, call.out)
        marked = mark[rank - len(shape) :]
        operands.append(tensor("1" if n == "1" else m for m, n in zip(marked, names, strict=True)))
    return signature(operands, [tensor(mark)])


def _cross_here(call: Call, sharding: Sharding) -> LocalCall:
    """Name the dim: a local size may be 3 too."""
    return call.replace(dim=_vector_dim(call))


rule(
    aten.cross, aten.linalg_cross, spec=_along_dim, localize=_cross_here,
    linear=["self", "other"],
)  # fmt: skip


def _vecdot(call: Call) -> str:
    """Sum over one dim of a product with broadcasting."""
    rank = max(len(shape) for shape in call.shapes)
    dim = call.integer("dim") % rank
    full = broadcast_shape(call.shapes)
    out = [name for i, name in enumerate(names_of(rank)) if i != dim]
    return signature([tensor(aligned(shape, full)) for shape in call.shapes], [tensor(out)])


rule(aten.linalg_vecdot, spec=_vecdot, linear=["x", "y"], passes=False)
rule(
    aten.matrix_power, aten.linalg_matrix_power, aten.matrix_exp, aten.linalg_matrix_exp,
    spec=lambda call: fixed(call, range(len(call.out) - 2, len(call.out))),
    keeps="self result",
)  # fmt: skip
