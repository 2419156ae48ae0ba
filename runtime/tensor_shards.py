"""Operands of operations on sharded tensors: as this device's shards, or whole."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor
from torch.distributed.tensor import DTensor

from shardlang.runtime.sharding import Sharding, alike, plain_dtensor

Lead = Sharding | None
"""How a result lies; None for a plain one."""


class ShardedBase(DTensor):
    """What a sharded tensor knows of itself.

    Attributes:
        sharding: how it lies.
        copied: whether it is a gathered copy that stands for a view, so that a write into it would
            be lost.
    """

    sharding: Sharding
    copied: bool


def is_sharded(value: object) -> TypeGuard[ShardedBase]:
    """Whether a value is a sharded tensor of ours, made to the end."""
    return isinstance(value, ShardedBase) and hasattr(value, "sharding")


def shard(value: Tensor, lead: Lead) -> Tensor:
    """This device's shard of an operand, cut as the result lies. Collective where it lies else."""
    if lead is None:
        return plain(value)
    if is_sharded(value):
        if value.sharding.same(lead):
            return value._local_tensor
        return lead.cut(value.sharding.whole(value._local_tensor))
    if isinstance(value, DTensor):
        return _shard_of_dtensor(value, lead)
    return value if value.numel() == 1 and not value.dim() else lead.cut(value)


def _shard_of_dtensor(value: DTensor, lead: Sharding) -> Tensor:
    """A DTensor of torch's own that lies as we do, or is gathered."""
    spec, held = lead.spec(value.dtype), value._local_tensor
    same = value.shape == spec.shape and alike(value.placements, spec.placements)
    if same and held.shape == lead.layout.local_shape(lead.groups.coord):
        return held
    return lead.cut(plain(value))


def plain(value: Tensor) -> Tensor:
    """The whole tensor. Collective."""
    if is_sharded(value):
        return value.sharding.whole(value._local_tensor)
    return plain_dtensor(value) if isinstance(value, DTensor) else value
