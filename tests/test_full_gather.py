"""No change of layout gathers more than devices hold before and after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import document

MODEL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.up = nn.Linear(8, inner)
        self.down = nn.Linear(inner, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def build(inner):
    return nn.Sequential(*[Block(inner) for _ in range(3)])
"""
SPEC = """
mesh {{ a = 2  b = 2 }}
model "model.py:build"(inner = {inner})
input input : f32[7, 8] [_, _]
param "*.up.weight" [{held}, _]
value "*.up".out    [_, {wanted}]
"""


def spec(folder: Path, inner: int, held: str, wanted: str, more: str = "") -> Path:
    (folder / "model.py").write_text(MODEL)
    path = folder / "spec.shard"
    path.write_text(SPEC.format(inner=inner, held=held, wanted=wanted) + more)
    return path


WAYS = [
    ("a(3)", "a"), ("a*b", "b*a"), ("a*b(3)", "a*b"), ("a", "_"), ("_", "a"), ("a*b", "a"),
    ("a", "b"), ("a", "b*a"), ("b(3)", "a"), ("a*b(3)", "b"),
]  # fmt: skip


@pytest.mark.parametrize("inner", [12, 15])
@pytest.mark.parametrize(("held", "wanted"), WAYS)
def test_nothing_is_gathered_in_full(inner: int, held: str, wanted: str, tmp_path: Path) -> None:
    path = spec(tmp_path, inner, held, wanted, "expect { forbid full_gather }\n")
    found = document("check", path).get("diagnostics", [])
    assert "SH0406" not in {one["code"] for one in found}


def test_blocks_of_another_kind_are_exchanged(tmp_path: Path) -> None:
    """Of 3 blocks of 5 over two devices, 3 and 2 each, to 8 and 7: one part of a block moves."""
    path = spec(tmp_path, 15, "a(3)", "a")
    rows = [row for row in document("plan", path)["collectives"] if row["op"] == "send_recv"]
    assert {row["bytes"] for row in rows} == {3 * 7 * 4}
    assert document("verify", path)["ok"]
