"""A change of layout that gathers more than devices hold before and after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import document, shardlang

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


UNEVEN = [("a(3)", "a"), ("a*b", "b*a"), ("a*b(3)", "a*b")]
DIRECT = [*UNEVEN[:2], ("a", "_"), ("_", "a"), ("a*b", "a"), ("a", "b"), ("a", "b*a")]


@pytest.mark.parametrize(("held", "wanted"), UNEVEN)
def test_one_warning_for_all_layers(held: str, wanted: str, tmp_path: Path) -> None:
    path = spec(tmp_path, 15, held, wanted)
    found = document("check", path)["diagnostics"]
    (warning,) = (d for d in found if d["code"] == "SH0406")
    assert warning["severity"] == "warning"
    assert warning["message"].startswith("`relu` needs `up.out` split another way, gathered over")
    assert warning["file"].endswith("model.py")
    assert "torch.relu(self.up(x))" in MODEL.splitlines()[warning["line"] - 1]
    assert f"`[7, 15@{held}]`" in warning["notes"][0]
    assert warning["notes"][1] == "in module `{0..2}.up`"
    assert document("verify", path)["ok"]


@pytest.mark.parametrize("inner", [12, 24])
@pytest.mark.parametrize(("held", "wanted"), DIRECT)
def test_direct_steps_are_none(inner: int, held: str, wanted: str, tmp_path: Path) -> None:
    found = document("check", spec(tmp_path, inner, held, wanted)).get("diagnostics", [])
    assert "SH0406" not in {d["code"] for d in found}


def test_forbidding_it_is_an_error_with_the_line_of_the_spec(tmp_path: Path) -> None:
    path = spec(tmp_path, 15, "a(3)", "a", "expect { forbid full_gather }\n")
    status, out, _ = shardlang("check", path)
    assert status == 1
    assert "error[SH0502]: `full_gather` is forbidden, the plan has 6" in out
    assert f"--> {path}:7:10" in out
    assert "`relu` needs `up.out` split another way" in out
    assert "SH0406" not in out


def test_forbidding_another_one_leaves_the_warning(tmp_path: Path) -> None:
    path = spec(tmp_path, 15, "a(3)", "a", "expect { forbid full_gather over b }\n")
    assert "SH0406" in {d["code"] for d in document("check", path)["diagnostics"]}
