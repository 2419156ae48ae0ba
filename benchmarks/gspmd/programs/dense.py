"""Perceptrons, norms and losses. Shapes: b batch, s sequence, d hidden, f inner, v vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Out = dict[str, Tensor]


def weight(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A parameter of small random numbers."""
    return nn.Parameter(torch.randn(*shape) * scale)


class Mlp(nn.Module):
    """Expand, gelu, contract; `layers` times."""

    def __init__(self, d: int, f: int, layers: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(d, f) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(f, d) for _ in range(layers))

    def forward(self, x: Tensor) -> Out:
        for up, down in zip(self.up, self.down, strict=True):
            x = down(F.gelu(up(x), approximate="tanh"))
        return {"loss": x.square().mean(), "y": x}


def mlp(d: int, f: int, layers: int = 1) -> nn.Module:
    return Mlp(d, f, layers)


class Stacked(nn.Module):
    """Residual layers whose weights are stacked in one parameter."""

    def __init__(self, layers: int, d: int, f: int) -> None:
        super().__init__()
        self.up = weight(layers, d, f)
        self.down = weight(layers, f, d)

    def forward(self, x: Tensor) -> Out:
        for up, down in zip(self.up.unbind(0), self.down.unbind(0), strict=True):
            x = x + torch.tanh(x @ up) @ down
        return {"loss": x.square().mean(), "y": x}


def stacked(layers: int, d: int, f: int) -> nn.Module:
    return Stacked(layers, d, f)


class Tied(nn.Module):
    """A language model of one layer, its head tied to its embedding."""

    def __init__(self, v: int, d: int) -> None:
        super().__init__()
        self.table = weight(v, d)
        self.w = weight(d, d)

    def forward(self, ids: Tensor, labels: Tensor) -> Out:
        h = torch.tanh(F.embedding(ids, self.table) @ self.w)
        logits = h @ self.table.t()
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def tied(v: int, d: int) -> nn.Module:
    return Tied(v, d)


class ZLoss(nn.Module):
    """Cross-entropy and the square of the log of its denominator."""

    def __init__(self, d: int, v: int) -> None:
        super().__init__()
        self.head = nn.Linear(d, v, bias=False)

    def forward(self, x: Tensor, labels: Tensor) -> Out:
        logits = self.head(x)
        z = logits.logsumexp(-1).square().mean()
        return {"loss": F.cross_entropy(logits, labels) + 1e-3 * z}


def z_loss(d: int, v: int) -> nn.Module:
    return ZLoss(d, v)


class Normed(nn.Module):
    """Layer norm, a product, layer norm."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(d), nn.LayerNorm(d)
        self.w = weight(d, d)

    def forward(self, x: Tensor) -> Out:
        y = self.second(torch.tanh(self.first(x) @ self.w))
        return {"loss": (y * x).mean(), "y": y}


def normed(d: int) -> nn.Module:
    return Normed(d)


class Softmax(nn.Module):
    """A softmax over a dim of `d` columns, and a mean weighted by it."""

    def __init__(self, d: int, f: int) -> None:
        super().__init__()
        self.w = weight(d, f)
        self.values = weight(f, d)

    def forward(self, x: Tensor) -> Out:
        y = (x @ self.w).softmax(-1) @ self.values
        return {"loss": (y * x).mean(), "y": y}


def softmax(d: int, f: int) -> nn.Module:
    return Softmax(d, f)


class Sums(nn.Module):
    """Cumulative sums along the sequence, after a product."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.w = weight(d, d)

    def forward(self, x: Tensor) -> Out:
        y = torch.tanh(x @ self.w).cumsum(1)
        return {"loss": (y * x).mean(), "y": y}


def sums(d: int) -> nn.Module:
    return Sums(d)


class Traded(nn.Module):
    """A table whose two dims trade places, and the axes with them."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.w = weight(d, d)

    def forward(self, x: Tensor) -> Out:
        y = torch.tanh(x @ self.w).transpose(0, 1).contiguous()
        return {"loss": y.square().mean(), "y": y}


def traded(d: int) -> nn.Module:
    return Traded(d)


class Joined(nn.Module):
    """Two tensors joined along the dim that is split, and a product over it."""

    def __init__(self, d: int, f: int) -> None:
        super().__init__()
        self.w, self.u = weight(d, f), weight(d, f)
        self.down = weight(2 * f, d)

    def forward(self, x: Tensor) -> Out:
        y = torch.cat([x @ self.w, torch.sin(x @ self.u)], -1)
        y = torch.tanh(y) @ self.down
        return {"loss": (y * x).mean(), "y": y}


def joined(d: int, f: int) -> nn.Module:
    return Joined(d, f)


class Heads(nn.Module):
    """A split dim is taken apart into heads, of which there are fewer than devices, and merged."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.w = weight(d, d)
        self.scale = weight(heads, scale=1.0)
        self.heads = heads

    def forward(self, x: Tensor) -> Out:
        b, s, d = x.shape
        h = (x @ self.w).view(b, s, self.heads, d // self.heads)
        h = torch.tanh(h * self.scale.unsqueeze(-1)).reshape(b * s, d)
        return {"loss": h.square().mean(), "y": h}


def heads(d: int, heads: int) -> nn.Module:
    return Heads(d, heads)


class Towers(nn.Module):
    """Two towers and a contrastive loss of all rows against all."""

    def __init__(self, d: int, f: int) -> None:
        super().__init__()
        self.left, self.right = weight(d, f), weight(d, f)

    def forward(self, x: Tensor, y: Tensor) -> Out:
        a = F.normalize(torch.tanh(x @ self.left), dim=-1)
        b = F.normalize(torch.tanh(y @ self.right), dim=-1)
        scores = a @ b.t()
        mine = (a * b).sum(-1)
        return {"loss": (scores.logsumexp(-1) - mine).mean()}


def towers(d: int, f: int) -> nn.Module:
    return Towers(d, f)


class Largest(nn.Module):
    """The largest of a split dim, and the squares of the differences of neighbours along it."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.w = weight(d, d)

    def forward(self, x: Tensor) -> Out:
        h = torch.tanh(x @ self.w)
        steps = (h[:, 1:] - h[:, :-1]).square().mean()
        return {"loss": h.amax(1).mean() + steps}


def largest(d: int) -> nn.Module:
    return Largest(d)
