"""Local functions: what a device runs where no aten op does the job on its shard.

Each is plain torch on local tensors, differentiated as it stands, and has a rule like any op.
Called without positions they work on the whole tensor. A position is where the local indices of a
dim lie: their first global index, or the list of them all where they have gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shardlang.rules.local_shape import Place, indices


def _lowest(dtype: torch.dtype) -> float:
    if dtype.is_floating_point:
        return -torch.inf
    return False if dtype is torch.bool else torch.iinfo(dtype).min


def _highest(dtype: torch.dtype) -> float:
    if dtype.is_floating_point:
        return torch.inf
    return True if dtype is torch.bool else torch.iinfo(dtype).max


def _empty(x: Tensor, dims: Sequence[int]) -> bool:
    return any(x.shape[d] == 0 for d in dims)


def _reduced(x: Tensor, dims: Sequence[int], keepdim: bool, value: float) -> Tensor:
    shape = [1 if d in dims else n for d, n in enumerate(x.shape) if keepdim or d not in dims]
    return x.new_full(shape, value)


def max_over(x: Tensor, dims: Sequence[int], keepdim: bool = False) -> Tensor:
    """Largest element over `dims`, the lowest number where the shard is empty; no gradient."""
    x = x.detach()
    if _empty(x, dims):
        return _reduced(x, dims, keepdim, _lowest(x.dtype))
    return x.amax(list(dims), keepdim) if dims else x


def min_over(x: Tensor, dims: Sequence[int], keepdim: bool = False) -> Tensor:
    """Smallest element over `dims`, the highest number where the shard is empty; no gradient."""
    x = x.detach()
    if _empty(x, dims):
        return _reduced(x, dims, keepdim, _highest(x.dtype))
    return x.amin(list(dims), keepdim) if dims else x


def local_indices(index: Tensor, at: Place, size: int) -> tuple[Tensor, Tensor]:
    """Global indices as local ones (0 where they lie elsewhere), and which lie here."""
    if isinstance(at, int):
        local = index - at
        inside = (local >= 0) & (local < size)
    else:
        table = indices(at, size, index.device)
        local = torch.searchsorted(table, index).clamp(max=max(size - 1, 0))
        inside = table[local] == index if size else torch.zeros_like(index, dtype=torch.bool)
    return torch.where(inside, local, 0), inside


def first_index(
    x: Tensor, best: Tensor, dims: Sequence[int], sizes: Sequence[int], at: Sequence[Place] = ()
) -> Tensor:
    """Smallest flat index over `dims`, of global `sizes`, at which `x` is `best` (size 1 there)."""
    hit = (x == best) | (x.isnan() & best.isnan())
    flat = torch.zeros((), dtype=torch.int64, device=x.device)
    for place, dim in enumerate(dims):
        own = indices(at[place] if at else 0, x.shape[dim], x.device)
        flat = flat * sizes[place] + own.view([-1 if d == dim else 1 for d in range(x.dim())])
    last = torch.iinfo(torch.int64).max
    return min_over(torch.where(hit, flat, last), dims, keepdim=True)


def pick(x: Tensor, index: Tensor, dim: int, at: Place = 0) -> Tensor:
    """`x` at a global index along `dim` (which `index` has not), zero where that lies elsewhere."""
    local, inside = local_indices(index, at, x.shape[dim])
    if x.shape[dim] == 0:
        return x.sum(dim)
    return x.gather(dim, local.unsqueeze(dim)).squeeze(dim).masked_fill(~inside, 0)


def lookup(
    weight: Tensor, index: Tensor, padding_idx: int = -1, at: Place = 0, sparse: bool = False
) -> Tensor:
    """Rows of a table at global indices, zero where they lie elsewhere."""
    rows = weight.shape[0]
    if rows == 0:
        return weight.sum(0).expand(*index.shape, *weight.shape[1:])
    local, inside = local_indices(index, at, rows)
    if weight.dim() == 1:
        entries = weight.index_select(0, local.reshape(-1)).view(local.shape)
        return entries.masked_fill(~inside, 0)
    padding = _row(padding_idx, at, rows)
    found: Tensor = torch.ops.aten.embedding(weight, local, padding, False, sparse)
    return found.masked_fill(~inside.unsqueeze(-1), 0)


def _row(index: int, at: Place, rows: int) -> int:
    """The local row of one global row, -1 where it lies elsewhere."""
    if index < 0:
        return -1
    if isinstance(at, int):
        return index - at if at <= index < at + rows else -1
    return list(at).index(index) if index in at else -1


def causal_fill(scores: Tensor, rows: Place = 0, columns: Place = 0) -> Tensor:
    """Attention scores `... l s` with -inf where the key comes after the query."""
    lengths = scores.shape[-2:]
    row = indices(rows, lengths[0], scores.device)
    column = indices(columns, lengths[1], scores.device)
    return scores.masked_fill(column > row.unsqueeze(-1), -torch.inf)


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Place = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Causal attention for the query rows that lie here; keys after the last row are left out."""
    if isinstance(rows, int):
        end = rows + query.shape[-2]
        key, value = key[..., :end, :], value[..., :end, :]
    row = indices(rows, query.shape[-2], query.device)
    column = torch.arange(key.shape[-2], device=query.device)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, column <= row.unsqueeze(-1), scale=scale, enable_gqa=enable_gqa
    )


def runs_of(size: int, starts: Sequence[int], at: Place) -> list[tuple[int, int]]:
    """Number and length of every local run, in local order, given where all runs start."""
    if isinstance(at, int):
        return [(starts.index(at), size)] if size else []
    found: list[tuple[int, int]] = []
    for index in at:
        if index in starts:
            found.append((starts.index(index), 0))
        found[-1] = (found[-1][0], found[-1][1] + 1)
    return found


def _cut_runs(x: Tensor, dim: int, starts: Sequence[int], at: Place) -> list[tuple[int, Tensor]]:
    """Every local run of `x` with its number among all runs."""
    found, place = [], 0
    for number, length in runs_of(x.shape[dim], starts, at):
        found.append((number, x.narrow(dim, place, length)))
        place += length
    return found


def run_totals(
    x: Tensor, dim: int, starts: Sequence[int], product: bool = False, at: Place | None = None
) -> Tensor:
    """Sum (or product) of each run of a split dim; zero for runs that lie elsewhere.

    A run is a stretch of consecutive indices on one device; `starts` are those of all runs.
    """
    mine = [(0, x)] if at is None else _cut_runs(x, dim, starts, at)
    totals = {i: part.prod(dim) if product else part.sum(dim) for i, part in mine}
    zero = x.narrow(dim, 0, 0).sum(dim)
    return torch.stack([totals.get(i, zero) for i in range(len(starts))], dim)


def scanned(
    x: Tensor,
    totals: Tensor,
    dim: int,
    starts: Sequence[int],
    product: bool = False,
    at: Place | None = None,
) -> Tensor:
    """Running sum (or product) along `dim`, given the totals of all runs."""
    mine = [(0, x)] if at is None else _cut_runs(x, dim, starts, at)
    done = [x.narrow(dim, 0, 0)]
    for number, part in mine:
        before = totals.narrow(dim, 0, number)
        if product:
            done.append(part.cumprod(dim) * before.prod(dim, keepdim=True))
        else:
            done.append(part.cumsum(dim) + before.sum(dim, keepdim=True))
    return torch.cat(done, dim)


def attention_scores(query: Tensor, key: Tensor) -> Tensor:
    """Query times key, `b... (g r) l e` by `b... g s e`: each key head serves r query heads."""
    return query @ _shared_heads(key, query).transpose(-1, -2)


def attend(weights: Tensor, value: Tensor) -> Tensor:
    """Weights times value, `b... (g r) l s` by `b... g s v`."""
    return weights @ _shared_heads(value, weights)


def _shared_heads(x: Tensor, query: Tensor) -> Tensor:
    if x.dim() < 3 or x.shape[-3] in (1, query.shape[-3]):
        return x
    return x.repeat_interleave(query.shape[-3] // x.shape[-3], -3)


def cut_out(full: Tensor, at: Sequence[Place], sizes: Sequence[int]) -> Tensor:
    """This device's shard of a global tensor."""
    for dim, (where, size) in enumerate(zip(at, sizes, strict=True)):
        if isinstance(where, int):
            full = full.narrow(dim, where, size)
        else:
            full = full.index_select(dim, indices(where, size, full.device))
    return full


def put_in(
    x: Tensor, shape: Sequence[int], at: Sequence[Place], steps: Sequence[int] | None = None
) -> Tensor:
    """A global tensor of ones, with the given steps in memory, and this device's shard in it."""
    full = x.new_ones(shape) if steps is None else x.new_empty_strided(shape, steps).fill_(1)
    grid = [
        indices(where, size, x.device).view([-1 if i == dim else 1 for i in range(x.dim())])
        for dim, (where, size) in enumerate(zip(at, x.shape, strict=True))
    ]
    return full.index_put(tuple(grid), x) if grid else x


def drawn(
    make: Callable[..., Tensor],
    at: Sequence[Place],
    sizes: Sequence[int],
    *args: object,
    **kwargs: object,
) -> Tensor:
    """This device's shard of a random tensor that every device draws in full."""
    return cut_out(make(*args, **kwargs), at, sizes).clone()


def drawn_like(
    x: Tensor,
    make: Callable[..., Tensor],
    at: Sequence[Place],
    shape: Sequence[int],
    strides: Sequence[int],
    *args: object,
    **kwargs: object,
) -> Tensor:
    """This device's shard of a random tensor drawn in the shape and order of a global tensor."""
    full = x.new_empty_strided(shape, strides).zero_()
    return drawn(make, at, x.shape, full, *args, **kwargs)


def drawn_by(
    parameters: Sequence[object],
    make: Callable[..., Tensor],
    shapes: Sequence[Sequence[int]],
    places: Sequence[Sequence[Place]],
    at: Sequence[Place],
    sizes: Sequence[int],
    steps: Sequence[int] | None = None,
) -> Tensor:
    """This device's shard of numbers drawn by element-wise parameters, of which it has its shard.

    The first one has the given steps in memory, if any are given.
    """
    full = [
        put_in(p, shape, where, None if i else steps) if isinstance(p, Tensor) else p
        for i, (p, shape, where) in enumerate(zip(parameters, shapes, places, strict=True))
    ]
    return drawn(make, at, sizes, *full)
