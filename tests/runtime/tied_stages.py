"""A table that is looked up without a gradient, and trained through the head that is tied to it."""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import torch.nn.functional as F
from staged import batch
from torch import Tensor, nn

import shardlang
from shardlang.api import Program
from shardlang.runtime.whole import held_shard

STEPS = 3
INPUT = "input ids, labels : i64[8, 5] below 9 [_, _]\noptimizer adamw(lr = 0.05, clip = 0.5)\n"
STAGES = 'mesh { pp = 2 }\npipeline pp { split "layers" schedule 1f1b microbatches 4 }\n' + INPUT
ALONE = "mesh { dp = 1 }\naccumulate 4\n" + INPUT


class Model(nn.Module):
    """Two layers between the table and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Shapes `b s`."""
        x = F.embedding(ids, self.table.weight.detach())
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        scores = F.linear(x, self.table.weight)
        return {"loss": F.cross_entropy(scores.flatten(0, 1), labels.flatten())}


def model() -> nn.Module:
    """In float64."""
    torch.manual_seed(4)
    return Model().double()


def program(text: str) -> Program:
    """A spec on the model."""
    path = Path(mkdtemp()) / "spec.shard"
    path.write_text(text)
    return shardlang.compile(path, model=model)


def in_stages() -> dict[str, Any]:
    """On the ranks of the pipeline."""
    return trained(program(STAGES))


def trained(made: Program) -> dict[str, Any]:
    """Some steps; the losses, and the whole table at the end."""
    table = dict(made.load().named_parameters())["table.weight"]
    steps = [made.step(batch(number)) for number in range(STEPS)]
    full: Any = getattr(table, "full_tensor", lambda: table)()
    return {
        "losses": [step.loss for step in steps],
        "norms": [step.grad_norm for step in steps],
        "table": full.detach().clone(),
        "held": held_shard(table).numel(),
    }
