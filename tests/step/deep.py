"""A small model most of whose bytes are activations."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes `b 8` to `b 8`."""
        y: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return y


class Deep(nn.Module):
    """Six blocks, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(6)).double()

    def forward(self, x: Tensor) -> Tensor:
        """Shapes `b 8` to a number."""
        for block in self.blocks:
            x = block(x)
        return x.square().sum()
