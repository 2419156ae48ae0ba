"""Small models that compute something twice, or ask for a part of what an op gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Normed(nn.Module):
    """Batch norm in training: statistics that run, and statistics that carry a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `b h`."""
        return {"loss": self.down(self.norm(self.up(x))).square().sum()}


class Routed(nn.Module):
    """A cross-entropy, and the z-loss of the same logits (Zoph et al., 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 6), nn.Linear(6, 110)

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Shapes `b`."""
        logits = self.head(self.embed(ids))
        entropy = F.cross_entropy(logits, labels, reduction="sum")
        return {"loss": entropy + 0.1 * torch.logsumexp(logits, -1).square().sum()}


class Summed(nn.Module):
    """A sum with its dim and without, detached and not, and the same value returned twice."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 80)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `b h`."""
        y = self.up(x)
        scale = y.detach().sum(1)
        part = y - y.sum(-1, keepdim=True) * torch.sigmoid(scale)[:, None]
        again = (y.sum(1) * scale).sin().sum()
        return {"loss": part.square().sum() + again, "a": y.sum(1), "b": y.sum(1)}


class Largest(nn.Module):
    """The largest values over a dim, with ties, and no word of where they lie."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.up, self.how = nn.Linear(6, 48), how

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `b h`."""
        y = torch.relu(self.up(x))
        if self.how == "detached":
            return {"loss": (y - y.detach().max(-1, keepdim=True).values).square().sum()}
        if self.how == "least":
            return {"loss": y.min(1).values.square().sum() + y.square().sum()}
        return {"loss": y.max(1).values.square().sum() + y.square().sum()}


def normed() -> nn.Module:
    """In float64."""
    return Normed().double().train()


def routed() -> nn.Module:
    """In float64."""
    return Routed().double()


def summed() -> nn.Module:
    """In float64."""
    return Summed().double()


def largest(how: str) -> nn.Module:
    """In float64."""
    return Largest(how).double()


class Tabled(nn.Module):
    """Attention with tables that the model computes or holds: positions, masks, rotary angles."""

    mask: Tensor
    table: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.q, self.k, self.v, self.how = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), how
        self.register_buffer("mask", torch.ones(8, 8).tril().bool())
        self.register_buffer("table", torch.linspace(-1, 1, 48).view(8, 6))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `b s h`, of 8 positions."""
        n, q, k = x.shape[1], self.q(x), self.k(x)
        at = torch.arange(n, dtype=x.dtype)
        if self.how == "rotary":
            q, k = _turned(q, at), _turned(k, at)
        scores = q @ k.transpose(1, 2)
        if self.how == "masks":
            later = at[:, None] < at
            scores = scores.masked_fill(later, -9.0) + torch.full((n, n), -0.5).to(x).triu(2)
            x = x * at[:, None]
        if self.how == "distances":
            apart = -(at[:, None] - at).abs()
            scores = scores + apart + apart.sum() / n + at.sin().cumsum(0) * at.flip(0)
        if self.how == "buffers":
            scores, x = scores.masked_fill(~self.mask, -9.0), x + self.table
        return {"loss": (scores.softmax(-1) @ self.v(x)).square().sum() + x.square().sum()}


def _turned(x: Tensor, at: Tensor) -> Tensor:
    angles = at[:, None] * 10.0 ** -torch.arange(0, 3, dtype=x.dtype)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


def tabled(how: str) -> nn.Module:
    """In float64."""
    return Tabled(how).double()
