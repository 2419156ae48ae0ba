"""Small models whose collectives can be counted by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two linear layers with a residual: `b s d -> b s d`."""

    def __init__(self, d: int, f: int) -> None:
        super().__init__()
        self.up = nn.Linear(d, f)
        self.down = nn.Linear(f, d)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.down(torch.nn.functional.gelu(self.up(x)))
        return hidden + x


class Stack(nn.Module):
    """Blocks one after the other, and the mean square of the last one's result as the loss."""

    def __init__(self, d: int, f: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(d, f) for _ in range(layers))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = layer(x)
        return {"loss": x.square().mean(), "hidden": x}


def block(d: int = 8, f: int = 24) -> Block:
    """One block."""
    return Block(d, f)


def stack(d: int = 8, f: int = 24, layers: int = 3) -> Stack:
    """Several blocks and a loss."""
    return Stack(d, f, layers)


class Tied(nn.Module):
    """A table that is its own head: `b s -> `."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.table(ids)
        for layer in self.layers:
            x = layer(x).tanh()
        return (x @ self.table.weight.T).square().mean()


class Tables(nn.Module):
    """Parameters whose own names have a number: `b d -> b d`."""

    def __init__(self) -> None:
        super().__init__()
        self.table_l0 = nn.Parameter(torch.zeros(8, 8))
        self.table_l1 = nn.Parameter(torch.zeros(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.table_l0).tanh() @ self.table_l1


def tables() -> Tables:
    """Two products."""
    return Tables()


def tied() -> Tied:
    """A table that is its own head."""
    return Tied()
