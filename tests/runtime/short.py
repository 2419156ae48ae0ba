"""A small model with dropout, and data whose last batches are short."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tiny import Tiny
from torch import Tensor, nn

ROWS = (5, 5, 2, 5, 1)
"""Rows of each batch; one row cannot be split over two devices, and is whole on both."""


class Dropping(Tiny):
    """The tiny model with dropout on its embeddings."""

    def __init__(self) -> None:
        super().__init__(11, 6, 7)
        self.embed_drop = nn.Dropout(0.2)
        self.embed.register_forward_hook(lambda _, __, out: self.embed_drop(out))


def build() -> nn.Module:
    """The model of `short.shard`."""
    return Dropping()


def batches(seed: int) -> Iterator[dict[str, Tensor]]:
    """Five batches."""
    made = torch.Generator().manual_seed(seed)
    for rows in ROWS:
        ids = torch.randint(0, 11, (rows, 4), generator=made)
        yield {"ids": ids, "labels": ids}
