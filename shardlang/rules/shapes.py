"""Writing rule strings from the shapes of a call: broadcasting, reductions, dims in arguments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from shardlang.rules.call import Call
from shardlang.rules.writing import names as names_of
from shardlang.rules.writing import tensor

Shape = tuple[int, ...]


def aligned(shape: Shape, out: Shape, prefix: str = "d") -> list[str]:
    """The factors of a shape that is broadcast to `out`, aligned to the right."""
    offset = len(out) - len(shape)
    return [
        f"{prefix}{offset + i}" if size == out[offset + i] else "1" for i, size in enumerate(shape)
    ]


def signature(operands: Iterable[str], results: Iterable[str]) -> str:
    """The rule string of these operands and results."""
    return ", ".join(operands) + " -> " + ", ".join(results)


def broadcast(call: Call) -> str:
    """Every operand broadcast to the result, element by element."""
    out = call.out
    operands = [tensor(aligned(shape, out)) for shape in call.shapes]
    return signature(operands, [tensor(names_of(len(out)))] * len(call.results))


def whole(call: Call) -> str:
    """Every dim of every tensor stays whole."""
    operands = [[f"x{i}d{d}!" for d in range(len(s))] for i, s in enumerate(call.shapes)]
    results = [[f"y{i}d{d}!" for d in range(len(s))] for i, s in enumerate(call.result_shapes)]
    return signature(map(tensor, operands), map(tensor, results))


def fixed(call: Call, dims: Iterable[int], mark: str = "!") -> str:
    """Operand and results of one shape, with `mark` on some dims."""
    marked = set(dims)
    names = [name + mark * (i in marked) for i, name in enumerate(names_of(len(call.shapes[0])))]
    return signature([tensor(names)], [tensor(names)] * len(call.results))


def reduction(call: Call, dims: Sequence[int], mark: str = "", keepdim: bool = False) -> str:
    """`dims` of the first operand are reduced; `mark` is what those factors carry."""
    names = names_of(len(call.shapes[0]))
    operand = [name + mark * (i in dims) for i, name in enumerate(names)]
    kept = [i for i in range(len(names)) if keepdim or i not in dims]
    result = ["1" if i in dims else names[i] for i in kept]
    return signature([tensor(operand)], [tensor(result)] * len(call.results))


def one_dim(call: Call, name: str = "dim") -> tuple[int, ...]:
    """A dim argument as a tuple; empty for a tensor of no dims."""
    return (call.dim(name),) if call.shapes[0] else ()


def some_dims(call: Call, name: str = "dim") -> tuple[int, ...]:
    """A list-of-dims argument (all where None or empty); empty for a tensor of no dims."""
    if not call.shapes[0]:
        return ()
    return call.dims(name) if name in call.names else tuple(range(len(call.shapes[0])))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of `dtype` are accumulated."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
