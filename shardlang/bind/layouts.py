"""A layout as written, and a shape: the layout of one tensor, or what is wrong with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardlang.bind.types import Shape
from shardlang.grammar.diagnostics import NOWHERE, Span
from shardlang.ir.dim_layout import DimLayout, all_shards_nonempty
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.records import Stated
from shardlang.spec.types import Axes, LayoutEntry, LayoutExpr, Open, Rest


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a layout does not fit a tensor; `problem` completes "`name` ..."."""

    code: str
    problem: str
    span: Span
    help: str


def bind_layout(expr: LayoutExpr, shape: Shape, mesh: Mesh, span: Span) -> Stated | Misfit:
    """Apply a layout to a shape; `span` is the place of the statement."""
    entries = expand_rest(expr, len(shape))
    if entries is None:
        return _wrong_rank(expr, shape)
    dims: list[DimLayout] = []
    for entry, size in zip(entries, shape, strict=True):
        dim = _dim(entry, size, mesh)
        if isinstance(dim, Misfit):
            return dim
        dims.append(dim)
    is_open = frozenset(i for i, entry in enumerate(entries) if isinstance(entry, Open))
    partial = frozenset(mesh.named(expr.partial))
    at = "" if span == NOWHERE else f"{span.file}:{span.line}"
    return Stated(Layout(tuple(dims), partial), is_open, at)


def expand_rest(expr: LayoutExpr, rank: int) -> tuple[LayoutEntry, ...] | None:
    """The entries with `...` written out as `?`; None where the rank does not fit."""
    if expr.rank is not None:
        return expr.entries if expr.rank == rank else None
    missing = rank - (len(expr.entries) - 1)
    if missing < 0:
        return None
    entries: list[LayoutEntry] = []
    for entry in expr.entries:
        entries += [Open(entry.span)] * missing if isinstance(entry, Rest) else [entry]
    return tuple(entries)


def _wrong_rank(expr: LayoutExpr, shape: Shape) -> Misfit:
    written = len(expr.entries) - (expr.rank is None)
    if not shape and any(isinstance(entry, Axes) for entry in expr.entries):
        return Misfit(
            "SH0309",
            "is a scalar and cannot be sharded",
            expr.span,
            "write `[]`, or narrow the pattern so that it matches no scalar",
        )
    return Misfit(
        "SH0302",
        f"has {_count(len(shape), 'dim')}, the layout {_count(written, 'entry', 'entries')}",
        expr.span,
        "write one entry per dim, or `...` for the remaining ones",
    )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _dim(entry: LayoutEntry, size: int, mesh: Mesh) -> DimLayout | Misfit:
    if not isinstance(entry, Axes):
        return DimLayout.whole(size)
    axes = mesh.named(entry.axes)
    blocks = entry.blocks or (1,)
    if max(blocks) > max(size, 1):
        return _bad_blocks(entry, blocks, size)
    try:
        dim = DimLayout.shard(size, axes, blocks[0] if len(blocks) == 1 else blocks)
    except ValueError:
        return _bad_blocks(entry, blocks, size)
    return dim if all_shards_nonempty(dim) else _too_many(entry, axes, blocks, size)


def _bad_blocks(entry: Axes, blocks: tuple[int, ...], size: int) -> Misfit:
    if len(blocks) == 1:
        problem = f"has a dim of {size}, which {blocks[0]} equal blocks do not divide"
    else:
        ratios = ":".join(map(str, blocks))
        problem = f"has a dim of {size}, which blocks in the ratio {ratios} do not divide"
    help = (
        f"the size of the dim must be a multiple of {sum(blocks) if len(blocks) > 1 else blocks[0]}"
    )
    return Misfit("SH0304", problem, entry.span, help)


def _too_many(entry: Axes, axes: tuple[Axis, ...], blocks: tuple[int, ...], size: int) -> Misfit:
    shards = math.prod(axis.size for axis in axes)
    smallest = size // blocks[0] if len(blocks) == 1 else size // sum(blocks) * min(blocks)
    what = "a dim" if entry.blocks is None else "a block"
    help = "shard another dim, or use fewer axes"
    part = math.gcd(smallest, shards)
    if len(entry.axes) == 1 and 1 < part < shards and axes[0].part is None:
        help += f", or a part of this one: `{axes[0]}:{part}`"
    return Misfit(
        "SH0303",
        f"has {what} of {smallest}, too few for {shards} shards over `{'*'.join(entry.axes)}`",
        entry.span,
        help,
    )
