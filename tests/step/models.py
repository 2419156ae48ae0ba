"""Small models that between them have every kind of op on whose gradient something may be odd."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Words(nn.Module):
    """A table tied to the head; dropout in two orders of memory, integer results."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6, padding_idx=2)
        self.norm = nn.LayerNorm(6)
        self.drop = nn.Dropout(0.3)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.drop(self.norm(self.table(ids)))
        x = x + self.drop(x.transpose(0, 1)).transpose(0, 1)
        best, where = (x @ self.table.weight.T).topk(3, dim=-1)
        return {"x": x, "again": x, "best": best, "where": where, "many": where > 4}


class Heads(nn.Module):
    """Attention with dropout over five heads, one matrix for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(10, 30, bias=False)
        self.out = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = self.into(x).view(b, s, 3, 5, 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.2, is_causal=True)
        y = F.dropout(y.transpose(1, 2).reshape(b, s, 10), 0.4)
        return (self.out(y) * x + y).square().mean()


class Biased(nn.Module):
    """Attention with a bias that is trained, and causal attention, over five heads."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(10, 30, bias=False)
        self.bias = nn.Parameter(torch.linspace(-1, 2, 125).sin().view(5, 5, 5))
        self.out = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = self.into(x).view(b, s, 3, 5, 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, self.bias)
        y = y * F.scaled_dot_product_attention(k, q, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, s, 10)).square().mean()


class Turning(nn.Module):
    """Products of complex numbers, and their parts."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.randn(6, 2))
        self.up = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        turned = torch.complex(self.up(x), 0.5 * x) * torch.view_as_complex(self.by).conj()
        return turned.real + turned.imag, turned.abs().sum()


class Memory(nn.Module):
    """A recurrent net over time, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(5, 5, batch_first=True)
        self.gated = nn.GRU(5, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.cell(x)
        y, (last, _) = self.cell(y + x)
        z, _ = self.gated(y)
        return z.square().sum() + last.sum()


class Pictures(nn.Module):
    """A convolution whose height is split, a batch norm that writes its buffers, and a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.more = nn.Conv2d(6, 4, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        return self.more(y).tanh().mean()


class Sliced(nn.Module):
    """Values that are read in slices: some fill them, others leave a gap or overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Linear(6, 9)
        self.scale = nn.Parameter(torch.linspace(-1, 2, 9))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        packed = self.packed(x)
        turned = torch.cat((-packed[..., 5:], packed[..., :5]), -1) * self.scale + packed
        three = turned[..., 3:7] * 2, turned[..., 7:].tanh(), turned[..., :3].exp()
        first, second, third = turned.view(*x.shape[:-1], 3, 3).unbind(-2)
        gap = packed[..., :2].sin().sum(-1) + packed[..., 4:9:2].cos().sum(-1)
        over = packed[..., :6].square().mean(-1) + packed[..., 3:].sum(-1)
        ends = self.scale[0] * self.scale[-1] + self.scale[1:8].square().sum()
        return {
            "filled": torch.cat(three, -1), "unbound": first * second - third.square(),
            "left": gap + over * ends, "mean": (turned * packed).mean(),
        }  # fmt: skip


class Squared(torch.autograd.Function):
    """A square whose backward is its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * 2 * x


class Written(nn.Module):
    """Values and a buffer that are written in place, a sum of several reads, a frozen matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 7)
        self.frozen = nn.Linear(7, 7)
        self.frozen.weight.requires_grad_(False)
        self.register_buffer("mean", torch.zeros(7))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.up(x)
        self.mean.mul_(0.9).add_(hidden.detach().mean(0), alpha=0.1)
        y = torch.zeros_like(hidden)
        y[1:4] = hidden[:3] * 2
        y.add_(hidden).mul_(hidden.detach())
        z = self.frozen(y) + Squared.apply(hidden) + y.cumsum(0)
        return z, (z * self.mean).sum()
