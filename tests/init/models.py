"""Plain models whose layouts are known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Packed(nn.Module):
    """Attention whose query, key and value are one projection, taken apart in one of three ways."""

    def __init__(self, how: str, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.how, self.heads = how, heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape `b s d`."""
        q, k, v = (part.transpose(1, 2) for part in self.parts(self.qkv(x)))
        made = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(made.flatten(2)).pow(2).mean()

    def parts(self, packed: Tensor) -> list[Tensor]:
        """Query, key and value, each `b s h e`."""
        width = packed.shape[-1] // 3
        if self.how == "view":
            return list(packed.unflatten(-1, (3, self.heads, -1)).unbind(2))
        if self.how == "heads first":
            return list(packed.unflatten(-1, (self.heads, 3, -1)).unbind(3))
        if self.how == "slice":
            shards = [packed[..., i * width : (i + 1) * width] for i in range(3)]
        else:
            shards = list(packed.chunk(3, -1))
        return [shard.unflatten(-1, (self.heads, -1)) for shard in shards]


class Stack(nn.Module):
    """Four linear layers one after another, of growing and shrinking widths."""

    def __init__(self) -> None:
        super().__init__()
        pairs = itertools.pairwise([10, 24, 12, 28, 9])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """Shape `b d`."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.pow(2).mean()


class Narrow(nn.Module):
    """An MLP whose inner width is smaller than four devices."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(40, 3)
        self.down = nn.Linear(3, 40)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """Shapes `b d` and `b`."""
        return F.cross_entropy(self.down(torch.relu(self.up(x))), ids)


def chunked() -> nn.Module:
    return Packed("chunk")


def sliced() -> nn.Module:
    return Packed("slice")


def viewed() -> nn.Module:
    return Packed("view")


def heads_first() -> nn.Module:
    return Packed("heads first")


def stack() -> nn.Module:
    return Stack()


def narrow() -> nn.Module:
    return Narrow()


def with_data() -> tuple[nn.Module, Iterator[dict[str, Tensor]]]:
    """A model that brings a batch along."""
    batch = {"x": torch.randn(8, 40), "ids": torch.arange(8)}
    return Narrow(), iter([batch])


def needs_width(width: int) -> nn.Module:
    return nn.Linear(width, width)
