"""Four layers with dropout, and batches that say which process asks for them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """A residual layer whose output is dropped in part."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(6, 8), nn.Linear(8, 6), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Shape `b 6`."""
        return x + self.drop(self.down(torch.tanh(self.up(x))))


class Layered(nn.Module):
    """The layers, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(Layer() for _ in range(4)), nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Shapes `b 6` and `b 3`."""
        for layer in self.layers:
            x = layer(x)
        return {"loss": (self.head(x) - y).square().mean()}


def build() -> nn.Module:
    """The model."""
    return Layered()


def batches(seed: int) -> Iterator[dict[str, Tensor]]:
    """Random ones. With `PIDS` the process writes its number there, and steps are slow."""
    pids = os.environ.get("PIDS")
    if pids is not None:
        Path(pids, os.environ["RANK"]).write_text(str(os.getpid()))
    generator = torch.Generator().manual_seed(seed)
    while True:
        if pids is not None:
            time.sleep(0.1)
        yield {
            "x": torch.randn(8, 6, generator=generator),
            "y": torch.randn(8, 3, generator=generator),
        }
