"""A small model with data of its own, whose last batches are short; `x` and `target` are `b h`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Rows(nn.Module):
    """A perceptron with dropout whose batches end in short ones."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 7), nn.Linear(7, width)
        self.dropout = dropout

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        y = self.down(F.dropout(F.silu(self.up(x)), self.dropout, self.training))
        return {"loss": F.smooth_l1_loss(y, target), "y": y}


def rows(width: int = 5, dropout: float = 0.2) -> nn.Module:
    """A model with data of its own."""
    return Rows(width, dropout)


def batches(seed: int) -> Iterator[dict[str, Tensor]]:
    """Seven rows as `rows_*.shard` declare, then three, and one."""
    made = torch.Generator().manual_seed(seed)
    for count in (7, 3, 1):
        yield {name: torch.randn(count, 5, generator=made) for name in ("x", "target")}
