"""A model in stages, with all that crosses them, and the specs by which it is trained."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import mkdtemp

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shardlang
from shardlang.api import Program

STEPS = 4


class Layer(nn.Module):
    """A residual block of uneven sizes, with a dropout, and a scale that is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.scale = nn.Parameter(torch.randn(()))
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Shapes `b s h`, `b s 1`."""
        return x + self.drop(self.down(torch.tanh(self.up(self.norm(x))))) * self.scale * mask


class Model(nn.Module):
    """A table tied to the head, a mask, a skip from the first layer, a buffer, and a penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.register_buffer("seen", torch.zeros(6))
        self.frozen = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Shapes `b s`."""
        x = self.table(ids)
        mask, skip = (ids > 1)[..., None].to(x.dtype), None
        for layer in self.layers:
            x = layer(x, mask)
            skip = x if skip is None else skip
        if self.training:
            self.seen.mul_(0.5).add_(1.0)
        x = self.norm(self.frozen(x) + skip)
        scores = (x @ self.table.weight.T).flatten(0, 1)
        penalty = self.layers[2].up.weight.square().sum() + self.layers[0].scale.square()
        return {"loss": F.cross_entropy(scores, labels.flatten()) + 0.01 * penalty}


def model() -> nn.Module:
    """In float64."""
    torch.manual_seed(4)
    return Model().double()


PIPELINE = 'pipeline pp {{ split "layers" schedule {schedule} microbatches 4 }}\n'
ROWS = "optimizer adamw(lr = 0.02, clip = 0.5)\ninput ids, labels : i64[8, 5] below 9 [{rows}, _]\n"
TP = (
    'param "layers.*.up.*" [tp, ...]\nparam "layers.*.down.weight" [_, tp]\n'
    'param "table.weight" [tp, _]\n'
)
SPECS = {
    "plain": ("mesh { dp = 1 }", "_", "", None),
    "1f1b": ("mesh { pp = 4 }", "_", "", "1f1b"),
    "gpipe, dp": ("mesh { pp = 2 dp = 2 }", "dp", "", "gpipe"),
    "zbv, tp": ("mesh { pp = 2 tp = 2 }", "_", TP, "zbv"),
    "interleaved, stored": (
        "mesh { dp = 2 pp = 2 }", "dp", 'store "**" over dp\n', "interleaved_1f1b(virtual = 2)",
    ),
    "v_half, states": (
        "mesh { pp = 2 dp = 2 }", "dp", 'store optimizer "**" over dp\n', "v_half",
    ),
    "zb_h1, gradients": (
        "mesh { pp = 2 dp = 2 }", "dp", 'store gradients "**" over dp\n', "zb_h1",
    ),
    "dualpipe_v": ("mesh { pp = 2 tp = 2 }", "_", TP, "dualpipe_v"),
}  # fmt: skip
"""Mesh, axes of the batch, layouts, and the schedule of the pipeline."""

STAGED = [name for name in SPECS if name != "plain"]
FEW = ("1f1b", "zbv, tp", "interleaved, stored", "v_half, states")
"""Those that `make test` runs."""


@functools.cache
def program(name: str) -> Program:
    """A spec on the model."""
    mesh, rows, stated, schedule = SPECS[name]
    text = f"{mesh}\n{ROWS.format(rows=rows)}{stated}"
    text += "accumulate 4\n" if schedule is None else PIPELINE.format(schedule=schedule)
    path = Path(mkdtemp()) / "spec.shard"
    path.write_text(text)
    return shardlang.compile(path, model=model)


def batch(step: int) -> dict[str, Tensor]:
    """Labels that are left out, unevenly."""
    given = torch.Generator().manual_seed(step)
    ids, labels = torch.randint(0, 9, (2, 8, 5), generator=given)
    labels[: 1 + step % 3, 2:] = -100
    return {"ids": ids, "labels": labels}
