"""Parameters whose gradients alone are cut are whole in the forward, varied or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shardlang


class Placed(nn.Module):
    """A place of two rows is added to uneven batches: a part of it would fit everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 2, 3))
        self.up = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": torch.tanh(self.up(x + self.places) * self.places).square().sum()}


@pytest.mark.parametrize("rows", [5, 6, 7])
def test_what_reads_them_reads_all_of_them(tmp_path: Path, rows: int) -> None:
    spec = tmp_path / "spec.shard"
    spec.write_text(
        f"mesh {{ dp = 2 }}\ninput x : f32[{rows}, 2, 3] [dp, ...]\n"
        'store gradients "**" over dp\naccumulate 2\n'
    )
    torch.manual_seed(0)
    report = shardlang.compile(spec, model=Placed()).verify()
    assert report.ok and report.accumulated, report
