"""What models do at their edges: every kind of input, output, parameter and buffer, proven."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT, document, shardlang
from tests.runtime.forking import completed

MODELS = Path(__file__).with_name("models.py")
MESH = "mesh { dp = 2 tp = 2 }"
X = "input x : f32[7, 10] [dp, _]"
SPLIT = 'param "up.*" [tp, ...]\nparam "down.weight" [_, tp]'

CASES: dict[str, tuple[str, ...]] = {
    "Keywords": (X,),
    "NestedInputs": (
        'input "batch.x", "extra.0", "extra.1" : f32[7, 10] [dp, _]',
        'input "batch.inner.mask" : bool[7] [dp]',
    ),
    "NestedOutputs": (X,),
    "Losses": (X, "loss total"),
    "NoLoss": (X,),
    "Frozen": (X,),
    "Mixed": (X,),
    "Half": (X.replace("f32", "bf16"),),
    "Statistics": (X, 'param "norm.*" [tp]', 'buffer "norm.running_*" [tp]'),
    "Written": (X, 'buffer "average" [tp]', 'buffer "cache" [_, tp]'),
    "Tied": (X, "input ids : i64[7] below 10 [dp]", 'param "table.weight" [_, tp]'),
    "Twice": (X,),
}
LAYOUTS = {"split": SPLIT, "stored": f'{SPLIT}\nstore "**" over dp', "data": 'store "**" over tp'}


def written(name: str, layout: str, folder: Path) -> Path:
    """The spec of one model under one layout."""
    inputs = [line for line in CASES[name] if not line.startswith(("param", "buffer"))]
    stated = [line for line in CASES[name] if line.startswith(("param", "buffer"))]
    kept = stated if layout != "data" else []
    path = folder / f"{name}.shard"
    lines = [MESH, f'model "{MODELS}:{name}"', *inputs, LAYOUTS[layout], *kept]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_proven(name: str, layout: str, tmp_path: Path) -> None:
    found = document("verify", written(name, layout, tmp_path))
    assert found["outputs"]["max_error"] < 1e-9
    assert found["gradients"]["max_error"] < 1e-9
    assert found["gradients"]["count"] >= 3
    assert found["gradients"]["unused"] == (["unused"] if name == "Frozen" else [])


def losses(*args: str | Path) -> tuple[dict[str, Any], list[float]]:
    """The summary and the losses of a run on processes of its own."""
    command = [sys.executable, "-m", "shardlang", "run", *map(str, args), "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = completed(command, env, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    *steps, last = [json.loads(line) for line in done.stdout.splitlines()]
    return last["summary"], [step["loss"] for step in steps]


@pytest.mark.parametrize("name", ["Statistics", "Written"])
def test_written_buffers_follow_the_plain_model_on_processes(name: str, tmp_path: Path) -> None:
    found, mine = losses(written(name, "split", tmp_path), "--steps", "3", "--reference")
    plain = found["reference"]
    assert plain["max_difference"] < 1e-6 * max(map(abs, plain["losses"]))
    assert len(set(mine)) == 3


def test_a_name_that_is_no_output_lists_the_outputs(tmp_path: Path) -> None:
    path = written("Losses", "split", tmp_path)
    path.write_text(path.read_text().replace("loss total", "loss sum"))
    status, out, _ = shardlang("check", path)
    assert status == 1
    assert "`first`, `second` and `total`" in " ".join(out.split())


ADDED = """
import torch
from torch import Tensor, nn


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        return y.index_add(0, torch.tensor([0]), y[:1].to(torch.bfloat16)).square().mean()
"""


def test_a_model_that_fails_on_real_tensors_alone_says_so(tmp_path: Path) -> None:
    """Fake tensors let rows in bf16 be added to others in f32; real ones do not."""
    (tmp_path / "models.py").write_text(ADDED)
    path = tmp_path / "added.shard"
    path.write_text(
        'mesh { dp = 2 }\nmodel "models.py:Added"\n'
        'input x : f32[4, 6] [_, _]\nparam "up.weight" [dp, _]\n'
    )
    status, _, err = shardlang("verify", path)
    assert status == 1
    assert "SH0355" in err and "models.py:13:" in err and "dtypes" in err
    assert "on real tensors: RuntimeError: index_add" in err


def test_a_product_of_two_types_is_refused_before(tmp_path: Path) -> None:
    path = written("Half", "split", tmp_path)
    path.write_text(path.read_text().replace("bf16", "f32"))
    status, out, _ = shardlang("check", path)
    assert status == 1
    assert "SH0355" in out and "models.py:" in out and "takes one type" in out
