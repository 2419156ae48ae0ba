"""A small model for the tests of the trainer: uneven sizes, a norm, biases, a tied matrix."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from torch import Tensor, nn

import shardlang
from shardlang.api import Program

ROWS, SEED = 5, 4


class Model(nn.Module):
    """Two layers, dropout, and an embedding that is the head too."""

    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 7, dtype=dtype)
        self.up, self.down = nn.Linear(7, 9, dtype=dtype), nn.Linear(9, 7, dtype=dtype)
        self.norm = nn.LayerNorm(7, dtype=dtype)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(7, 11, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight
        self.register_buffer("calls", torch.zeros((), dtype=dtype))

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        x = self.embed(ids)
        x = x + self.dropout(self.down(torch.tanh(self.up(self.norm(x)))))
        return {"loss": nn.functional.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())}


def seeded(
    dropout: float = 0.0, dtype: torch.dtype = torch.float64, model: type[Model] = Model
) -> Model:
    """The model with its weights, the same everywhere."""
    torch.manual_seed(SEED)
    return model(dropout, dtype)


def batches(seed: int = 1) -> Iterator[dict[str, Tensor]]:
    """Whole batches without an end, with labels that are left out, unevenly.

    They are drawn from three generators, as data that is augmented may be.
    """
    made, step = torch.Generator().manual_seed(seed), 0
    while True:
        ids, labels = torch.randint(0, 11, (2, ROWS, 4), generator=made)
        labels[0, : step % 4] = -100
        step += 1
        yield {"ids": ids, "labels": labels}


def noise() -> float:
    """A number from each of the generators that a run keeps."""
    return float(torch.rand(())) + random.random() + float(np.random.rand())


def program(
    stated: str,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
    rows: int = ROWS,
    model: type[Model] = Model,
) -> Program:
    """The model under a spec: what stands in it beside the inputs."""
    path = Path(mkdtemp()) / "spec.shard"
    inputs = f"input ids : i64[{rows}, 4] below 11 [dp, _] input labels : i64[{rows}, 4] [dp, _]"
    path.write_text(f"{inputs}\n{stated}\n")
    return shardlang.compile(path, model=lambda: seeded(dropout, dtype, model))
