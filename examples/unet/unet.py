"""A small U-Net: what each level of the way down makes is read again on the way up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Level(nn.Module):
    """Two convolutions of the same size."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm = nn.GroupNorm(2, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images `b c h w`, with other channels."""
        return F.silu(self.second(F.silu(self.norm(self.first(x)))))


class UNet(nn.Module):
    """Three levels down, each half as wide, and three up; the loss is of the pixels' classes."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(
            Level(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            Level(b + (b if b == widths[-1] else 2 * b), b) for b in reversed(widths)
        )
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Images `b 3 h w`, and the class of each pixel, `b h w`."""
        kept, x = [], image
        for level in self.down:
            x = level(x)
            kept.append(x)
            x = F.avg_pool2d(x, 2)
        for level in self.up:
            skip = kept.pop()
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0), skip], 1))
        logits = self.head(x)
        return {"loss": F.cross_entropy(logits, target), "logits": logits}


def build(width: int = 4, classes: int = 5) -> UNet:
    """The model that the spec names."""
    return UNet(width, classes)
