"""Models with blocks, whose parameters are stored: tied, frozen, uneven, and those of experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two linears of uneven sizes, a norm's weight, and two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 6)
        self.experts = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes `b h`."""
        y = self.down(torch.tanh(self.up(x * self.scale)))
        return x + y * torch.sigmoid(self.experts[0](x)) + torch.sin(self.experts[1](y))


class Stacked(nn.Module):
    """An embedding, blocks, and a head, tied to the embedding or not; some of it frozen, or not."""

    def __init__(self, frozen: bool = False, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(6, 7, bias=False)
        self.log_scale = nn.Parameter(torch.randn(()))
        if tied:
            self.head.weight = self.embed.weight
        if frozen:
            self.blocks[1].requires_grad_(False)
            self.blocks[2].up.requires_grad_(False)

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Shapes `b`."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return {"loss": F.cross_entropy(self.head(x) * self.log_scale.exp(), labels)}


def stacked() -> nn.Module:
    """With a head that is tied."""
    torch.manual_seed(4)
    return Stacked().double()


def untied() -> nn.Module:
    """With a head of its own."""
    torch.manual_seed(4)
    return Stacked(tied=False).double()


def frozen() -> nn.Module:
    """With one block frozen, and a part of another."""
    torch.manual_seed(4)
    return Stacked(frozen=True, tied=False).double()


class Perceptron(nn.Module):
    """Linears alone: no block."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(6, 6) for _ in range(7)]
        self.layers = nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `b h`."""
        return {"loss": self.layers(x).square().mean()}


def perceptron() -> nn.Module:
    """In float64."""
    return Perceptron().double()
