"""Operations on sharded tensors that have a rule of their own: norms, orders of dims, new tensors.

Each takes the operation, and then its arguments by the operation's schema.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shardlang.ir.compat import OpOverload, tree_map_only
from shardlang.ir.layout import Layout
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.tensor import Sharded, sharded
from shardlang.runtime.tensor_norms import list_norm, norm, unscale
from shardlang.runtime.tensor_shards import ShardedBase

aten = torch.ops.aten


def _reordered(op: OpOverload, x: ShardedBase, *order: object) -> Sharded:
    """A view with the dims in another order: the shard's own view."""
    places = op(torch.empty(tuple(range(x.dim())), device="meta"), *order).shape
    layout = Layout(tuple(x.sharding.layout.dims[d] for d in places))
    held = op(x._local_tensor, *order)
    return sharded(held, Sharding(layout, x.sharding.groups), copied=x.copied)


def _alias(op: OpOverload, x: ShardedBase) -> Sharded:
    """The tensor under another name: writes to either count for both."""
    return sharded(x._local_tensor, x.sharding, copied=x.copied)


def _same_shape(op: OpOverload, x: ShardedBase, size: Sequence[int]) -> object:
    """A view of the same shape is the tensor."""
    return _alias(op, x) if tuple(size) == tuple(x.shape) else NotImplemented


def _new(
    op: OpOverload, x: ShardedBase, size: Sequence[int], *rest: object, **options: object
) -> Tensor:
    """A new tensor: it lies like the one that it is made from if it has its shape."""
    held = x._local_tensor
    shape = size if tuple(size) != tuple(x.shape) else held.shape
    made: Tensor = op(held, shape, *rest, **options)
    return made if shape is size else sharded(made, x.sharding)


def _new_strided(
    op: OpOverload, x: ShardedBase, size: Sequence[int], stride: Sequence[int], **options: object
) -> Tensor:
    """The same; a shard lies in memory as that of the tensor that it is made from."""
    if tuple(size) != tuple(x.shape):
        return _new(op, x, size, stride, **options)
    made: Tensor = aten.empty_like.default(x._local_tensor, **options)
    return sharded(made, x.sharding)


def _here(op: OpOverload, *args: object, **options: object) -> object:
    """A question about memory: the shard's."""
    return op(*tree_map_only(Tensor, lambda x: getattr(x, "_local_tensor", x), args), **options)


def _same_size(op: OpOverload, x: Tensor, other: Tensor) -> bool:
    return x.shape == other.shape


SPECIAL: dict[OpOverload, Callable[..., object]] = {
    aten.linalg_vector_norm.default: norm,
    aten._foreach_norm.Scalar: list_norm,
    aten._amp_foreach_non_finite_check_and_unscale_.default: unscale,
    aten.is_same_size.default: _same_size,
    aten.is_pinned.default: _here,
    aten.new_empty_strided.default: _new_strided,
    **dict.fromkeys((aten.detach.default, aten.alias.default), _alias),
    **dict.fromkeys((aten.t.default, aten.transpose.int, aten.permute.default), _reordered),
    **dict.fromkeys((aten.view.default, aten._unsafe_view.default), _same_shape),
    **dict.fromkeys(
        (aten.new_zeros.default, aten.new_ones.default, aten.new_empty.default,
         aten.new_full.default), _new,
    ),
}  # fmt: skip
"""The operations and what they do; what gives `NotImplemented` goes by the rules for all."""
