"""Small models with buffers that they change, and with windows over space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Running(nn.Module):
    """Batch norm, a count, a moving average that is replaced, and a cache written in part."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.BatchNorm1d(inner)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.ones(inner))
        self.register_buffer("cache", torch.zeros(4, inner), persistent=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.up(x))) * self.cache.sum(0).cos()
        self.calls += 1
        self.cache[1:3] = hidden.detach()[:2]
        average = 0.9 * self.average + 0.1 * hidden.detach().abs().mean(0)
        self.average = average
        return (self.down(hidden / average) - target).square().mean()


def running(width: int = 6, inner: int = 10) -> nn.Module:
    """A perceptron with state."""
    return Running(width, inner)


class Scaled(nn.Module):
    """Divides by a buffer that autograd keeps, and then replaces it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)
        self.register_buffer("scale", torch.ones(width))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        y = self.mix(x) / self.scale
        self.scale = 0.9 * self.scale + 0.1 * y.detach().abs().mean(0)
        return (y - target).square().mean()


def scaled(width: int = 7) -> nn.Module:
    """A model whose state is replaced between forward and backward."""
    return Scaled(width)


class Teacher(nn.Module):
    """A codebook that follows its vectors: an exponential moving average, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 8), nn.Linear(8, 6)
        self.register_buffer("codes", torch.randn(5, 8))
        self.register_buffer("counts", torch.ones(5))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.encode(x)
        at = torch.cdist(z, self.codes).argmin(-1)
        hot = F.one_hot(at, 5).to(z.dtype)
        with torch.no_grad():
            self.counts.mul_(0.8).add_(hot.sum(0), alpha=0.2)
            self.codes.mul_(0.8).add_(hot.T @ z / self.counts.unsqueeze(-1), alpha=0.2)
        y = self.decode(z + (self.codes[at] - z).detach())
        return {"loss": (y - x).square().mean() + (z - self.codes[at]).square().mean(), "at": at}


def teacher() -> nn.Module:
    """A small vector-quantized autoencoder."""
    return Teacher()


class Picture(nn.Module):
    """Convolutions of several strides and dilations, pools and group norm over `b c y x`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 5, stride=2, padding=2)
        self.norm = nn.GroupNorm(3, 6)
        self.wide = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2)
        self.head = nn.Linear(6, 4)

    def forward(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        y = F.max_pool2d(F.relu(self.norm(self.stem(image))), 3, 2, 1)
        y = y + F.avg_pool2d(self.wide(y), 3, 1, 1)
        logits = self.head(y.mean((2, 3)))
        return {"loss": F.cross_entropy(logits, label), "features": y}


def picture() -> nn.Module:
    """A convolutional network."""
    return Picture()


class Signal(nn.Module):
    """Shifts along `s`: a roll, a causal convolution, differences, and a flip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3)
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        late = self.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
        shifted = torch.cat([x[:, :1] * 0.0, x[:, :-1]], 1)
        y = self.mix(torch.tanh(late) + x.roll(2, 1) * shifted) + x.roll((1, -1), (0, 2))
        steps = (y[:, 1:] - y[:, :-1]).square().mean()
        return {"loss": (y - target).square().mean() + steps, "y": y.flip(1)}


def signal(width: int = 5) -> nn.Module:
    """A model of shifts."""
    return Signal(width)
