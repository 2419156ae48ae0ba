"""One matrix product, the smallest thing that can be sharded."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MatMul(nn.Module):
    """`y = x @ w`, shapes `m k, k n -> m n`."""

    def __init__(self, k: int, n: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(k, n) / k**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        return x @ self.w


def build(k: int, n: int) -> nn.Module:
    """A product with a `k n` weight."""
    return MatMul(k, n)
