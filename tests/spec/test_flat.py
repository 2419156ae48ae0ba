"""The text of a run's spec stands alone: it means the same in any folder, without `--set`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from shardlang.spec import Spec, load_spec
from shardlang.spec.flat import flat_text
from tests.commands import ROOT, shardlang

SPECS = sorted((ROOT / "examples").glob("*/*.shard"))

MODEL = """
import torch

def build(width, name="a", fast=False):
    torch.manual_seed(0)
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Linear(width, 6)
        def forward(self, x):
            return self.up(x).square().mean()
    return Model()
"""

BASE = """
# what all runs share
let width = 8
let name = "tiny"
let fast = false
let rate = 0.1
dims { batch = dp  whole, other = _ }
mesh { dp = 2  tp = 2 }
model "model.py:build"(width = width, name = name, fast = fast)
data "base.bin"
evaluate every 5 batches 2 on "val.bin"
optimizer sgd(lr = rate)
"""

TOP = """use "parts/base.shard"
let rate = 0.2
dims { other = dp }
mesh { dp = 2 }
data "top.bin" (validation = 0.5)
input x : f32[4, width] [other, whole]
"""


def loaded(path: Path, sets: dict[str, str] | None = None) -> Spec:
    spec, findings = load_spec(path, sets)
    assert spec is not None, findings
    return spec


def meaning(spec: Spec) -> str:
    """All that a spec says, without places in files."""
    return re.sub(r"Span\([^)]*\)", "", repr(replace(spec, path=Path(), sets=())))


def alone(spec: Spec, folder: Path) -> Spec:
    """The spec that the text gives from a folder of its own."""
    folder.mkdir()
    path = folder / "spec.shard"
    path.write_text(flat_text(spec))
    return loaded(path)


@pytest.mark.parametrize("path", SPECS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_text_of_every_spec_means_the_same_elsewhere(path: Path, tmp_path: Path) -> None:
    spec = loaded(path)
    assert meaning(alone(spec, tmp_path / "elsewhere")) == meaning(spec)


def test_used_files_sets_and_paths_are_in_the_text(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "model.py").write_text(MODEL)
    (tmp_path / "parts" / "base.shard").write_text(BASE)
    (tmp_path / "top.shard").write_text(TOP)
    sets = {"width": "12", "name": "it", "fast": "true", "rate": "1e-3"}
    spec = loaded(tmp_path / "top.shard", sets)
    found = alone(spec, tmp_path / "elsewhere")
    assert meaning(found) == meaning(spec)
    assert dict(found.model.kwargs) == {"width": 12, "name": "it", "fast": True}
    text = flat_text(spec)
    assert "base.bin" not in text and f'"{tmp_path}/top.bin"' in text and "use" not in text.split()
    assert f'"{tmp_path}/parts/val.bin"' in text
    status, _, errors = shardlang("check", tmp_path / "elsewhere" / "spec.shard")
    assert status == 0, errors
    status, _, errors = shardlang("fmt", "--check", tmp_path / "elsewhere" / "spec.shard")
    assert status == 0, errors
