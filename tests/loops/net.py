"""A small model with what makes shards awkward: packed, uneven, tied, frozen, and awkward names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    """A language model of one gated block; `groups` and `program` are modules like any other."""

    seen: Tensor

    def __init__(self, width: int = 12, inner: int = 7, words: int = 11) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.groups = nn.Linear(width, 3 * width)
        self.program = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.linspace(0.5, 1.5, width), requires_grad=False)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros(width))

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Any]:
        """Ids and labels `b s` to the loss and the logits `b s v`."""
        x = self.embed(ids) * self.scale
        q, k, v = self.groups(self.norm(x)).chunk(3, -1)
        x = x + self.program(torch.tanh(q) * torch.sigmoid(k) * v) * self.frozen
        x = x + self.down(F.gelu(self.up(x)))
        self.seen += x.detach().mean((0, 1))
        logits = self.head(x)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def build() -> nn.Module:
    """The model of the specs beside this file."""
    return Net().double()
