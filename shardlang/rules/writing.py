"""Helpers that write rule strings from shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shardlang.ir.rule import DimSpec, Rule


def names(rank: int, prefix: str = "d") -> list[str]:
    """One factor name per dim."""
    return [f"{prefix}{i}" for i in range(rank)]


def tensor(dims: Iterable[str]) -> str:
    """A tensor of these dims, `.` if there are none."""
    return " ".join(dims) or "."


def tensors(many: Iterable[Iterable[str]]) -> str:
    """Several tensors."""
    return ", ".join(tensor(dims) for dims in many)


def arrow(operands: Iterable[Iterable[str]], results: Iterable[Iterable[str]]) -> str:
    """The whole rule string."""
    return f"{tensors(operands)} -> {tensors(results)}"


def group(factors: Sequence[str]) -> str:
    """One dim of several factors, major to minor; `1` if there are none."""
    if not factors:
        return "1"
    return factors[0] if len(factors) == 1 else f"({' '.join(factors)})"


def blocks(stretches: Sequence[tuple[str, int]]) -> str:
    """One dim of named stretches, one after another; those of size 0 are left out."""
    kept = [f"{name}={size}" for name, size in stretches if size]
    if not kept:
        return f"{stretches[0][0]}=0"
    return kept[0] if len(kept) == 1 else f"[{'|'.join(kept)}]"


def swapped(dims: Sequence[str], place: int, dim: str) -> list[str]:
    """`dims` with another one at `place`."""
    return [*dims[:place], dim, *dims[place + 1 :]]


def without(dims: Sequence[str], place: int) -> list[str]:
    """`dims` without the one at `place`."""
    return [*dims[:place], *dims[place + 1 :]]


def with_whole(dims: Sequence[str], places: Iterable[int]) -> list[str]:
    """`dims` with those at `places` marked as whole."""
    chosen = set(places)
    return [f"{dim}!" if i in chosen else dim for i, dim in enumerate(dims)]


def broadcast_shape(shapes: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The shape to which all of these are broadcast; they are known to fit."""
    joint: list[int] = []
    for shape in shapes:
        joint = [1] * (len(shape) - len(joint)) + joint
        skip = len(joint) - len(shape)
        for i, size in enumerate(shape):
            joint[skip + i] = size if size != 1 else joint[skip + i]
    return tuple(joint)


def rule_text(rule: Rule) -> str:
    """A bound rule in the notation, without sizes."""
    marks = {name: "!" for name in rule.whole} | {name: "~" for name in rule.lowered}
    marks |= {name: f"{marks.get(name, '')}@{other}" for other, name in rule.tied}

    def block(factors: Sequence[str]) -> str:
        return group([name + marks.get(name, "") for name in factors])

    def dim(spec: DimSpec) -> str:
        return block(spec[0]) if len(spec) == 1 else f"[{'|'.join(block(b) for b in spec)}]"

    operands = ("+" * one.added + tensor(dim(spec) for spec in one.dims) for one in rule.operands)
    results = (tensor(dim(spec) for spec in dims) for dims in rule.results)
    return f"{', '.join(operands)} -> {', '.join(results)}"
