"""Indexing functions that devices run where the indexed dim is split.

Reading gives a summand: rows held elsewhere are zeros. Writing drops what belongs elsewhere,
by letting it fall into one more index that is cut off afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shardlang.rules.local_shape import Place, indices, local_positions
from shardlang.rules.writing import broadcast_shape

At = tuple[Place, int, int]
"""Where a device lies in a dim: its place, its number of indices, and the global size."""


def _nothing(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros that depend on an empty `x`, so that it still gets a gradient."""
    return x.new_zeros(shape) + x.sum().to(x.dtype)


def index_here(x: Tensor, index: list[Tensor | None], at: Sequence[At | None]) -> Tensor:
    """`x[index]`, zeros where an index is not here; `at` says where the split dims lie."""
    mask: Tensor | None = None
    local: list[Tensor | None] = []
    for one, span in zip(index, at, strict=True):
        if one is None or span is None:
            local.append(one)
            continue
        found = local_positions(one, *span)
        mask = found >= 0 if mask is None else mask & (found >= 0)
        local.append(found.clamp(min=0))
    assert mask is not None
    shape = broadcast_shape(one.shape for one in index if one is not None)
    result = torch.ops.aten.index.Tensor(_nonempty(x, at), local)
    after = x.dim() - len(index) if _adjacent(index) else _kept(x, index)
    if _adjacent(index):
        after += sum(1 for one in _after_last(index) if one is None)
    mask = mask.expand(shape).reshape(shape + (1,) * after)
    return torch.where(mask, result, torch.zeros((), dtype=x.dtype, device=x.device))


def _nonempty(x: Tensor, at: Sequence[At | None]) -> Tensor:
    """`x` with at least one index in every split dim, so that masked reads have a place."""
    for dim, span in enumerate(at):
        if span is not None and x.shape[dim] == 0:
            x = _nothing(x, [max(size, int(i == dim)) for i, size in enumerate(x.shape)])
    return x


def _after_last(index: Sequence[Tensor | None]) -> list[Tensor | None]:
    last = max(i for i, one in enumerate(index) if one is not None)
    return list(index[last + 1 :])


def _kept(x: Tensor, index: Sequence[Tensor | None]) -> int:
    return x.dim() - sum(one is not None for one in index)


def _adjacent(index: Sequence[Tensor | None]) -> bool:
    """Whether the indexed dims stand side by side, so that the result has theirs in their place."""
    places = [i for i, one in enumerate(index) if one is not None]
    return places == list(range(places[0], places[0] + len(places)))


def gather_here(x: Tensor, dim: int, index: Tensor, at: At) -> Tensor:
    """`x.gather(dim, index)`, zeros where an index is not here."""
    if x.shape[dim] == 0:
        return _nothing(x, index.shape)
    found = local_positions(index, *at)
    picked = x.gather(dim, found.clamp(min=0))
    return torch.where(found >= 0, picked, torch.zeros((), dtype=x.dtype, device=x.device))


def take_along_here(x: Tensor, index: Tensor, dim: int, at: At) -> Tensor:
    """`take_along_dim`, zeros where an index is not here."""
    shape = [max(a, b) for a, b in zip(x.shape, index.shape, strict=True)]
    wide = [x.shape[dim] if i == dim else size for i, size in enumerate(shape)]
    many = [index.shape[dim] if i == dim else size for i, size in enumerate(shape)]
    return gather_here(x.expand(wide), dim, index.expand(many), at)


def _longer(x: Tensor, dim: int) -> Tensor:
    """`x` with one more index at the end of `dim`."""
    shape = [1 if i == dim else size for i, size in enumerate(x.shape)]
    return torch.cat([x, x.new_zeros(shape)], dim)


def write_here(
    op: Callable[..., Tensor], x: Tensor, dim: int, index: Tensor, at: At,
    *rest: object, **options: object,
) -> Tensor:  # fmt: skip
    """`scatter`, `index_add` and their kin on a split dim."""
    found = local_positions(index, *at)
    size = x.shape[dim]
    found = torch.where(found < 0, size, found)
    return op(_longer(x, dim), dim, found, *rest, **options).narrow(dim, 0, size)


def index_put_here(
    x: Tensor, index: list[Tensor | None], at: Sequence[At | None], values: Tensor, accumulate: bool
) -> Tensor:
    """`index_put` where some indexed dims are split."""
    wide = x
    local: list[Tensor | None] = []
    for dim, (one, span) in enumerate(zip(index, at, strict=True)):
        if one is None or span is None:
            local.append(one)
            continue
        found = local_positions(one, *span)
        local.append(torch.where(found < 0, x.shape[dim], found))
        wide = _longer(wide, dim)
    made: Tensor = torch.ops.aten.index_put.default(wide, local, values, accumulate)
    for dim, span in enumerate(at):
        if span is not None:
            made = made.narrow(dim, 0, x.shape[dim])
    return made


def one_hot_here(x: Tensor, at: Place, size: int) -> Tensor:
    """This device's classes of a one-hot encoding."""
    return (x.unsqueeze(-1) == indices(at, size, x.device)).to(torch.int64)
