"""Values that pass the border of a program: whole tensors outside, this device's shards inside."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from shardlang.runtime.autograd import Context, WithSharding
from shardlang.runtime.once import once
from shardlang.runtime.sharding import Sharding
from shardlang.runtime.tensor import Sharded, sharded
from shardlang.runtime.tensor_shards import plain, shard


def cut(full: Tensor, sharding: Sharding) -> Sharded:
    """A whole input as a tensor that holds this device's shard, on its device.

    The gradient comes back as that of the whole input, on every device. Collective there.
    """
    moved = full.to(sharding.groups.device)
    if moved.requires_grad and torch.is_grad_enabled():
        made: Sharded = _Cut.apply(moved, sharding)  # type: ignore[no-untyped-call]
        return made
    held = sharding.cut(moved.detach()).contiguous()
    return sharded(held.view(held.shape) if held is full else held, sharding)


def around(held: Tensor, sharding: Sharding) -> Sharded:
    """A shard that a program gives as the whole tensor; its gradient is this device's shard.

    What is computed with it outside is the same on every device, so each has the whole gradient.
    """
    if held.requires_grad and torch.is_grad_enabled():
        made: Sharded = _Around.apply(held, sharding)  # type: ignore[no-untyped-call]
        return made
    return sharded(held.detach(), sharding)


def taken(given: DTensor, sharding: Sharding) -> Tensor:
    """This device's shard of an input, cut anew if it lies otherwise. Collective there."""
    if isinstance(given, Sharded) and given.sharding.same(sharding):
        return given.to_local()
    return cut(given.full_tensor(), sharding).to_local()


class _Cut(torch.autograd.Function):
    """Forward, the tensor around the shard; backward, the whole gradient."""

    @staticmethod
    def forward(ctx: Context, full: Tensor, sharding: Sharding) -> Sharded:
        ctx.set_materialize_grads(False)
        held = sharding.cut(full).clone(memory_format=torch.contiguous_format)
        return sharded(held, sharding)

    @staticmethod
    @once
    def backward(ctx: Context, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        return None if grads[0] is None else plain(grads[0]), None


class _Around(torch.autograd.Function):
    """Forward, the tensor around the shard; backward, this device's shard of the gradient."""

    @staticmethod
    def forward(ctx: WithSharding, held: Tensor, sharding: Sharding) -> Sharded:
        ctx.set_materialize_grads(False)
        ctx.sharding = sharding
        return sharded(held.detach(), sharding)

    @staticmethod
    @once
    def backward(ctx: WithSharding, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        return None if grads[0] is None else shard(grads[0], ctx.sharding), None
