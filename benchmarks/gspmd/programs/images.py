"""Convolutions, pooling and shifts. Shapes: n batch, c channels, h rows, w columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Out = dict[str, Tensor]


class Conv(nn.Module):
    """Two convolutions of 3 by 3."""

    def __init__(self, c: int, stride: int, padding: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(c, c, 3, 1, padding, bias=False)
        self.b = nn.Conv2d(c, 2 * c, 3, stride, padding, bias=False)

    def forward(self, x: Tensor) -> Out:
        y = self.b(torch.relu(self.a(x)))
        return {"loss": y.square().mean()}


def conv(c: int, stride: int = 1, padding: int = 1) -> nn.Module:
    return Conv(c, stride, padding)


class Pool(nn.Module):
    """A product by channels, a maximum over windows, an average over windows."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(c, c, 1, bias=False)

    def forward(self, x: Tensor) -> Out:
        y = F.max_pool2d(self.a(x), 3, 1, 1)
        y = F.avg_pool2d(y, 2, 2)
        return {"loss": y.square().mean()}


def pool(c: int) -> nn.Module:
    return Pool(c)


class GroupNorm(nn.Module):
    """A convolution of 1 by 1, then a norm over groups of channels, written out."""

    def __init__(self, c: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 1, bias=False)
        self.w = nn.Parameter(torch.randn(c))
        self.groups = groups

    def forward(self, x: Tensor) -> Out:
        n, c, h, w = x.shape
        y = self.conv(x).view(n, self.groups, -1)
        mean = y.mean(-1, keepdim=True)
        var = (y - mean).square().mean(-1, keepdim=True)
        y = ((y - mean) * torch.rsqrt(var + 1e-5)).view(n, c, h, w) * self.w[:, None, None]
        return {"loss": (torch.relu(y) * x).mean()}


def groupnorm(c: int, groups: int) -> nn.Module:
    return GroupNorm(c, groups)


class BatchNorm(nn.Module):
    """A convolution and a batch norm in training."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Out:
        return {"loss": (torch.relu(self.norm(self.conv(x))) * x).mean()}


def batchnorm(c: int) -> nn.Module:
    return BatchNorm(c)


class Roll(nn.Module):
    """A cyclic shift by two along rows and columns, of channels-last images."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a = nn.Linear(c, c, bias=False)

    def forward(self, x: Tensor) -> Out:
        y = torch.roll(torch.tanh(self.a(x)), (2, 2), (1, 2))
        return {"loss": (y * x).mean(), "y": y}


def roll(c: int) -> nn.Module:
    return Roll(c)


class Padded(nn.Module):
    """Zeros around the rows, then a mean of three neighbours."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a = nn.Linear(c, c, bias=False)

    def forward(self, x: Tensor) -> Out:
        y = F.pad(torch.tanh(self.a(x)), (0, 0, 1, 1))
        y = (y[:, :-2] + y[:, 1:-1] + y[:, 2:]) / 3
        return {"loss": (y * x).mean(), "y": y}


def padded(c: int) -> nn.Module:
    return Padded(c)
