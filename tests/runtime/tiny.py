"""A small model with tied weights, a buffer, uneven dims and a nested output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A feed-forward block that counts its calls."""

    calls: Tensor

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """Shape `b s d` to the same."""
        self.calls += 1
        y: Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return x + y


class Tiny(nn.Module):
    """A language model with tied embeddings."""

    def __init__(self, vocabulary: int, width: int, inner: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, inner) for _ in range(2))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Any]:
        """Ids and labels, `b s`, to the loss and the logits."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "extra": (logits,)}


def build(vocabulary: int = 11, width: int = 6, inner: int = 7) -> nn.Module:
    """The model of the specs beside this file."""
    return Tiny(vocabulary, width, inner)
