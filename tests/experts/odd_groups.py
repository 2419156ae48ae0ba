"""Experts whose rows count from the end, or have no expert at all."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from shardlang.rules.experts.local_grouped import grouped_mm

COUNT = 6


class Experts(nn.Module):
    """Two products with a bias between them; `looked_up` reads the matrices row by row."""

    def __init__(self, looked_up: bool) -> None:
        super().__init__()
        self.product = _looked_up if looked_up else grouped_mm
        self.up = nn.Parameter(torch.randn(COUNT, 6, 8))
        self.bias = nn.Parameter(torch.randn(COUNT, 8))
        self.down = nn.Parameter(torch.randn(COUNT, 8, 6))

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        made = self.product(x, self.up, groups) + self.bias[groups]
        return self.product(made.tanh(), self.down, groups)


def _looked_up(x: Tensor, weight: Tensor, groups: Tensor) -> Tensor:
    return torch.einsum("si,sio->so", x, weight[groups])


class Capacity(nn.Module):
    """Experts of which every third row has none: its group is one more than the last."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(COUNT, 6, 8))
        self.down = nn.Parameter(torch.randn(COUNT, 8, 6))

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        kept = torch.where(torch.arange(10) % 3 == 1, COUNT, groups.clamp(min=-1))
        return grouped_mm(grouped_mm(x, self.up, kept).relu(), self.down, kept)


def negative(looked_up: bool) -> nn.Module:
    """Rows whose groups count from the end; to a product they are none."""
    return Experts(looked_up)


def capacity() -> nn.Module:
    """Rows without an expert."""
    return Capacity()


def batches(seed: int) -> Iterator[dict[str, Tensor]]:
    """Rows `[10, 6]`; two experts have none, and the last two many."""
    numbers = torch.Generator().manual_seed(seed)
    while True:
        groups = torch.tensor([0, 5, -1, 4, 2, -6, 5, 4, -2, 4])
        yield {"x": torch.randn(10, 6, generator=numbers), "groups": groups}
