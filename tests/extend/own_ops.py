"""A model with ops of its own: a custom op, and a function that is one region."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import shardlang


@shardlang.rule("m k, k n -> m n", linear=["x", "w"])
@torch.library.custom_op("shardlang_tests::product", mutates_args=())
def product(x: Tensor, w: Tensor) -> Tensor:
    """A matrix product behind an opaque op."""
    return x @ w


@product.register_fake
def _(x: Tensor, w: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, w = ctx.saved_tensors
    return grad @ w.T, x.T @ grad


product.register_autograd(_backward, setup_context=_save)


@shardlang.local("b d!, d! -> b d!")
def normed(x: Tensor, scale: Tensor, eps: float = 1e-5) -> Tensor:
    """Root mean square norm: the last dim stays whole on every device."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * scale


class Model(nn.Module):
    """A norm and two products."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.up = nn.Parameter(torch.randn(width, inner) / width**0.5)
        self.down = nn.Parameter(torch.randn(inner, width) / inner**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Shape `b d`."""
        hidden = torch.relu(product(normed(x, self.scale, 1e-6), self.up))
        return (x + product(hidden, self.down)).pow(2).mean()


def build(width: int = 12, inner: int = 15) -> nn.Module:
    """The model."""
    return Model(width, inner)
