"""A token that all rows share, put before the patches of each: no microbatch has rows of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shardlang


class Tokens(nn.Module):
    """Two layers on a token and five patches; the class is read at the token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 15))
        self.places = nn.Parameter(torch.randn(1, 6, 15))
        self.layers = nn.ModuleList(nn.Linear(15, 15) for _ in range(2))
        self.head = nn.Linear(15, 7)

    def forward(self, x: Tensor, label: Tensor) -> dict[str, Tensor]:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        mean = F.cross_entropy(x[:, 1:].mean(1), label)
        return {"loss": F.cross_entropy(self.head(x[:, 0]), label) + mean}


ROWS = {
    "even": ("r = 4", "r", 8, "accumulate 2"),
    "uneven": ("r = 4", "r", 9, "accumulate 2"),
    "two each": ("r = 4", "r", 16, "accumulate 2"),
    "two axes": ("r = 2 s = 2", "r*s", 8, "accumulate 2"),
    "two devices": ("r = 2", "r", 9, "accumulate 4"),
    "stages": ("pp = 2", "_", 2, 'pipeline pp { split "layers" microbatches 2 }'),
}


@pytest.mark.parametrize("name", ROWS)
def test_microbatches_share_a_token(tmp_path: Path, name: str) -> None:
    mesh, axes, rows, rest = ROWS[name]
    spec = tmp_path / "spec.shard"
    spec.write_text(
        f"mesh {{ {mesh} }}\ninput x : f32[{rows}, 5, 15] [{axes}, ...]\n"
        f"input label : i64[{rows}] below 7 [{axes}]\n{rest}\n"
    )
    torch.manual_seed(0)
    report = shardlang.compile(spec, model=Tokens()).verify()
    assert report.ok and report.accumulated, report
    assert max(report.accumulated.values()) < 1e-12
