"""Functions that devices run in place of ops whose arguments or results name global places.

`Place` says which global indices a device holds of one dim: the first of a contiguous run, or all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from shardlang.ir.device_values import LocalIndices, LocalStart
from shardlang.ir.dim_layout import DimLayout

Place = int | list[int]

PlaceArgument: TypeAlias = int | LocalStart | LocalIndices
"""A place as an argument: the device's own, once the device is known."""


def place(dim: DimLayout) -> PlaceArgument:
    """The place of a device in a dim, as an argument."""
    if not dim.axes:
        return 0
    return LocalStart(dim) if dim.plain else LocalIndices(dim)


def indices(at: Place, size: int, device: torch.device) -> Tensor:
    """Global indices `[size]` of the local ones."""
    if isinstance(at, int):
        return torch.arange(at, at + size, device=device)
    return torch.tensor(at, dtype=torch.int64, device=device)


def local_positions(index: Tensor, at: Place, size: int, total: int) -> Tensor:
    """Local positions of global indices (negative ones count from the end); -1 where not here."""
    index = torch.where(index < 0, index + total, index)
    if isinstance(at, int):
        held = (index >= at) & (index < at + size)
        return torch.where(held, index - at, -1)
    table = torch.full((total,), -1, dtype=torch.int64, device=index.device)
    table[indices(at, size, index.device)] = torch.arange(size, device=index.device)
    return table[index]


def position(index: int, at: Place, size: int) -> int:
    """Local position of one global index; -1 where not here."""
    if isinstance(at, int):
        return index - at if at <= index < at + size else -1
    return at.index(index) if index in at else -1


def select_here(x: Tensor, dim: int, index: int, at: Place) -> Tensor:
    """`x.select(dim, index)` where this device holds the index, zeros elsewhere: a summand."""
    held = position(index, at, x.shape[dim])
    if held >= 0:
        return x.select(dim, held)
    shape = [size for i, size in enumerate(x.shape) if i != dim]
    return x.new_zeros(shape) + x.narrow(dim, 0, 0).sum(dim)


def select_scatter_here(x: Tensor, src: Tensor, dim: int, index: int, at: Place) -> Tensor:
    """`x` with `src` at one index of `dim`, on the device that holds it."""
    held = position(index, at, x.shape[dim])
    if held >= 0:
        return x.select_scatter(src, dim, held)
    if not (src.is_floating_point() or src.is_complex()):
        return x.clone()
    return x + src.unsqueeze(dim).narrow(dim, 0, 0).sum(dim, keepdim=True)


def triangle_here(
    op: Callable[[Tensor, int], Tensor], x: Tensor, diagonal: int, rows: Place, columns: Place
) -> Tensor:
    """`tril` or `triu` of a shard of a matrix."""
    if isinstance(rows, int) and isinstance(columns, int):
        made: Tensor = op(x, diagonal + rows - columns)
        return made
    row = indices(rows, x.shape[-2], x.device)[:, None]
    column = indices(columns, x.shape[-1], x.device)
    lower = op is torch.ops.aten.tril.default
    keep = column - row <= diagonal if lower else column - row >= diagonal
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype, device=x.device))


def arange_here(
    start: float, step: float, at: Place, size: int, *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """This device's shard of an arange."""
    if not dtype.is_floating_point:
        return (int(start) + indices(at, size, device) * int(step)).to(dtype)
    return (start + indices(at, size, device).to(torch.float64) * step).to(dtype)


def eye_here(
    rows: Place, row_count: int, columns: Place, column_count: int,
    *, dtype: torch.dtype, device: torch.device,
) -> Tensor:  # fmt: skip
    """This device's shard of an identity matrix."""
    row = indices(rows, row_count, device)[:, None]
    return (row == indices(columns, column_count, device)).to(dtype)
