"""Losses that are multiplied by a factor before their backward, and gradients of other ones.

Every backward has a number. A scaled loss notes the number of each of its backwards; a gradient
that arrives at a parameter in another one comes from a loss that was not scaled.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from shardlang.ir.compat import backward_number
from shardlang.ir.precision import wider
from shardlang.runtime.errors import RunError

HELP = "write `optimizer.scale(loss).backward()`, or take `program.step(batch)`"


class _Context(Protocol):
    """What a scaled loss keeps for its backward."""

    factor: float
    losses: ScaledLosses


class _Scaled(torch.autograd.Function):
    """A loss times a factor, which notes its backwards."""

    @staticmethod
    def forward(ctx: _Context, loss: Tensor, factor: float, losses: ScaledLosses) -> Tensor:
        """The product."""
        ctx.factor, ctx.losses = factor, losses
        return loss * factor

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the loss."""
        ctx.losses.scaled.add(backward_number())
        return gradient * ctx.factor, None, None


class ScaledLosses:
    """What an optimizer knows of the backwards that gave the gradients of some parameters."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        self.scaled = set[int]()
        self._from: dict[Tensor, tuple[weakref.ref[Tensor], set[int]]] = {}
        for param in params:
            param.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]

    def scale(self, loss: Tensor, factor: float) -> Tensor:
        """A loss times a factor, in f32 or its own wider type.

        Raises:
            RunError: SH0643, it is no tensor, or scaled already.
        """
        if not isinstance(loss, Tensor):
            raise RunError("SH0643", f"the loss is a {type(loss).__name__}, no tensor", help=HELP)
        if isinstance(loss.grad_fn, _Scaled._backward_cls):
            raise RunError("SH0643", "the loss is scaled already", help="scale it once")
        wide = loss.to(wider(loss.dtype, torch.float32))
        made: Tensor = _Scaled.apply(wide, factor, self)  # type: ignore[no-untyped-call]
        return made

    @property
    def others(self) -> bool:
        """Whether a gradient that is there comes from a backward without a scaled loss."""
        known = ((param.grad, *found) for param, found in self._from.items())
        return any(made() is grad and not numbers <= self.scaled for grad, made, numbers in known)

    def _arrived(self, param: Tensor) -> None:
        """Note the backward; a gradient that is new has nothing of those before."""
        grad, found = param.grad, self._from.get(param)
        assert grad is not None
        if found is None or found[0]() is not grad:
            found = self._from[param] = weakref.ref(grad), set()
        found[1].add(backward_number())

    def clear(self) -> None:
        """Forget the backwards: their gradients are used up, or let go of."""
        self.scaled.clear()
        self._from.clear()
