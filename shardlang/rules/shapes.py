"""Writing rule strings from the shapes of a call: broadcasting, reductions, positions in a dim."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from shardlang.ir.here import LocalIndices, LocalStart
from shardlang.ir.layout import DimLayout
from shardlang.rules.call import Call

Shape = tuple[int, ...]


def broadcast_shape(*shapes: Shape) -> Shape:
    """The shape to which all of these are broadcast."""
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def dim_names(rank: int, prefix: str = "d") -> list[str]:
    """One factor name for each dim."""
    return [f"{prefix}{i}" for i in range(rank)]


def tensor(dims: Iterable[str]) -> str:
    """One tensor of a rule string; `.` where it has no dims."""
    return " ".join(dims) or "."


def aligned(shape: Shape, out: Shape, prefix: str = "d") -> list[str]:
    """The factors of a shape that is broadcast to `out`, aligned to the right."""
    offset = len(out) - len(shape)
    return [
        f"{prefix}{offset + i}" if size == out[offset + i] else "1" for i, size in enumerate(shape)
    ]


def arrow(operands: Iterable[str], results: Iterable[str]) -> str:
    """The rule string of these operands and results."""
    return ", ".join(operands) + " -> " + ", ".join(results)


def broadcast(call: Call) -> str:
    """Every operand broadcast to the result, element by element."""
    out = call.out
    operands = [tensor(aligned(shape, out)) for shape in call.shapes]
    return arrow(operands, [tensor(dim_names(len(out)))] * len(call.results))


def fixed(call: Call, dims: Iterable[int], mark: str = "!") -> str:
    """Operand and results of one shape, with `mark` on some dims."""
    marked = set(dims)
    names = [name + mark * (i in marked) for i, name in enumerate(dim_names(len(call.shapes[0])))]
    return arrow([tensor(names)], [tensor(names)] * len(call.results))


def reduction(call: Call, dims: Sequence[int], mark: str = "", keepdim: bool = False) -> str:
    """`dims` of the first operand are reduced; `mark` is what those factors carry."""
    names = dim_names(len(call.shapes[0]))
    operand = [name + mark * (i in dims) for i, name in enumerate(names)]
    kept = [i for i in range(len(names)) if keepdim or i not in dims]
    result = ["1" if i in dims else names[i] for i in kept]
    return arrow([tensor(operand)], [tensor(result)] * len(call.results))


def one_dim(call: Call, name: str = "dim") -> tuple[int, ...]:
    """A dim argument as a tuple; empty for a tensor of no dims."""
    return (call.dim(name),) if call.shapes[0] else ()


def some_dims(call: Call, name: str = "dim") -> tuple[int, ...]:
    """A list-of-dims argument (all where None or empty); empty for a tensor of no dims."""
    if not call.shapes[0]:
        return ()
    return call.dims(name) if name in call.names else tuple(range(len(call.shapes[0])))


def positions(dim: DimLayout) -> LocalStart | LocalIndices:
    """Where the local indices of a dim lie: their start, or all of them where they have gaps."""
    return LocalStart(dim) if dim.plain else LocalIndices(dim)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of `dtype` are accumulated."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
