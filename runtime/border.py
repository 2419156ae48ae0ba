"""Values that pass the border of a program: whole tensors outside, this device's shards inside."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from shardlang.runtime.autograd import Context
from shardlang.runtime.errors import RunError
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
    part = sharding.cut(moved.detach())
    held = part.clone(memory_format=torch.contiguous_format) if sharding.split else part
    return sharded(held.contiguous(), sharding)


class Leaving:
    """The outputs of one call; what a loop hangs onto them is looked at when a gradient comes.

    A program computes outputs from others, the loss from the logits say, and not through the tensor
    that it gives for them: a hook on it would miss that part of the gradient.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        """`names`: the outputs from which others are computed, by place."""
        self._names = names
        self._given: list[tuple[str, weakref.ref[Tensor]]] = []

    def around(self, place: int, held: Tensor, sharding: Sharding | None) -> Tensor:
        """An output from what the program gives: the whole tensor around a shard, if it is split.

        What is computed with it outside is the same on every device, so each has the whole
        gradient, and gives the program its shard.
        """
        if not (held.requires_grad and torch.is_grad_enabled()):
            return held if sharding is None else sharded(held.detach(), sharding)
        if sharding is None and not self._names:
            return held
        made: Tensor = _Around.apply(held, sharding, self)  # type: ignore[no-untyped-call]
        if place in self._names:
            self._given.append((self._names[place], weakref.ref(made)))
        return made

    def check(self) -> None:
        """Raise SH0613 for a hook on an output that would see a part of its gradient alone."""
        for name, given in self._given:
            output = given()
            if output is not None and (output.retains_grad or output._backward_hooks):
                raise RunError(
                    "SH0613",
                    f"the output `{name}` has a hook, or retains its gradient, and other outputs"
                    " are computed from it within the program, whose part would be missing",
                    help=f"compute them outside of the model, from `{name}`, and leave them out of"
                    " the call; or write the hook into the model's forward",
                )


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


class _WithLeaving(Context, Protocol):
    sharding: Sharding | None
    leaving: Leaving


class _Around(torch.autograd.Function):
    """Forward, the tensor around the shard; backward, this device's shard of the gradient."""

    @staticmethod
    def forward(
        ctx: _WithLeaving, held: Tensor, sharding: Sharding | None, leaving: Leaving
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.sharding, ctx.leaving = sharding, leaving
        return held.detach() if sharding is None else sharded(held.detach(), sharding)

    @staticmethod
    def backward(ctx: _WithLeaving, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        ctx.leaving.check()
        if ctx.sharding is None or grads[0] is None:
            return grads[0], None, None
        return _shard_of(grads[0], ctx.sharding), None, None


@once
def _shard_of(grad: Tensor, sharding: Sharding) -> Tensor:
    return shard(grad, sharding)
