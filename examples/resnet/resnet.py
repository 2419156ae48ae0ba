"""A small residual network with a stem, two blocks and a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images `n c h w`."""
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Classifies images."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 7, 2, 3)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2))
        self.head = nn.Linear(2 * width, classes)

    def forward(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """The loss of images `n 3 h w` with labels `n`."""
        x = self.blocks(self.pool(torch.relu(self.norm(self.stem(image)))))
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        logits = self.head(x)
        return {"loss": nn.functional.cross_entropy(logits, label), "logits": logits}


def build(width: int = 4, classes: int = 5) -> ResNet:
    """The network, with random weights."""
    return ResNet(width, classes)
