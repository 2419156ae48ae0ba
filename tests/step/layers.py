"""A stack of alike layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """A layer of two products."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes `b h` to `b h`."""
        out: Tensor = x + self.down(torch.tanh(self.up(x)))
        return out


class Layers(nn.Module):
    """`count` layers, and the mean of squares."""

    def __init__(self, count: int, width: int = 5, inner: int = 7) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, inner) for _ in range(count))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Shape `b h` to a number."""
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()
