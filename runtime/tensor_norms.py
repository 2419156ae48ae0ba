"""Norms of sharded tensors, and the infinities in them: shards counted once, added up once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from shardlang.ir.compat import OpOverload
from shardlang.runtime.sharding import transport_to_all
from shardlang.runtime.tensor_shards import ShardedBase, is_sharded, shard
from shardlang.runtime.watch import named


def norm(
    op: OpOverload,
    x: Tensor,
    order: float = 2,
    dim: object = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> object:
    """Rule 2 for one tensor."""
    return NotImplemented if dim or keepdim else norms([x], order, dtype)[0]


def list_norm(
    op: OpOverload, tensors: Sequence[Tensor], order: float = 2, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Rule 2 for a list."""
    return norms(tensors, order, dtype)


def norms(tensors: Sequence[Tensor], order: float, dtype: torch.dtype | None) -> list[Tensor]:
    """The norm of each tensor, every element counted once; the same on every device. Collective."""
    ours = [x for x in tensors if is_sharded(x)]
    how, share, back = _folding(float(order))
    groups = ours[0].sharding.groups
    mine = torch.stack([share(x) for x in ours])
    totals = iter(back(named("norm", transport_to_all(groups).all_reduce, mine, how)))
    return [
        next(totals).to(dtype or x.dtype.to_real())
        if is_sharded(x)
        else torch.linalg.vector_norm(x, order, dtype=dtype)
        for x in tensors
    ]


_Fold: TypeAlias = "tuple[str, Callable[[ShardedBase], Tensor], Callable[[Tensor], Tensor]]"


def _folding(order: float) -> _Fold:
    """How to reduce a norm: with what, a device's share of it, and the norm from the total."""
    if abs(order) == float("inf"):
        how, nothing = ("max", 0.0) if order > 0 else ("min", float("inf"))
        return how, lambda x: _share(x, order, nothing, 1.0), lambda total: total
    power = order or 1.0
    return "sum", lambda x: _share(x, order, 0.0, power), lambda total: total ** (1.0 / power)


def _share(x: ShardedBase, order: float, nothing: float, power: float) -> Tensor:
    held = x._local_tensor
    if not held.numel() or not x.sharding.counted:
        return torch.full((), nothing, dtype=torch.float64, device=held.device)
    norm = torch.linalg.vector_norm(held, order)
    return torch.as_tensor(norm.double() ** power)


def unscale(op: OpOverload, grads: Sequence[Tensor], found: Tensor, scale: Tensor) -> None:
    """A gradient scaler's step: an infinity on one device is found on all."""
    op([shard(x, x.sharding if is_sharded(x) else None) for x in grads], found, scale)
    ours = next(x for x in grads if is_sharded(x))
    transport = transport_to_all(ours.sharding.groups)
    found.copy_(named("infinities", transport.all_reduce, found, "max"))
