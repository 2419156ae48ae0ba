"""`shardlang run --reference`: how far a run may lie from the losses of the plain model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import shardlang
from shardlang.runtime.trainer.records import Record
from shardlang.training import run as training
from shardlang.training.reference import compare, relative_tolerance
from tests.commands import shardlang as command

MODEL = Path(__file__).parent.parent / "checkpoint" / "noisy.py"
SPEC = f"""
mesh {{ dp = 1 }}
model "{MODEL}:build"
input x : f32[4, 6] [dp, _]
input y : f32[4, 3] [dp, _]
optimizer adamw(lr = 0.05)
"""


def run(folder: Path, *more: str | Path, spec: str = SPEC) -> tuple[int, dict[str, Any], str]:
    """Exit status, last line and messages."""
    path = folder / "spec.shard"
    path.write_text(spec)
    status, said, errors = command("run", path, "--reference", *more)
    return status, json.loads(said.splitlines()[-1]), " ".join(errors.split())


def test_a_run_that_is_the_plain_model_is_well(tmp_path: Path) -> None:
    status, last, errors = run(tmp_path, "--steps", "3")
    assert (status, last["ok"]) == (0, True), errors
    found = last["summary"]["reference"]
    assert found["tolerance"] == pytest.approx(1e-4 * max(found["losses"]))
    assert found["max_difference"] <= 1e-6


def test_a_run_that_is_another_model_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest difference is named, and the summary is there."""
    load = training.load_plain
    monkeypatch.setattr(training, "load_plain", lambda source, seed: load(source, seed + 1))
    status, last, errors = run(tmp_path, "--steps", "3")
    assert (status, last["ok"]) == (1, False)
    found = last["summary"]["reference"]
    assert found["max_difference"] > found["tolerance"]
    assert "error[SH0632]: in step " in errors and ".shard:1:1" not in errors
    assert f"the difference is {found['max_difference']:.2g}, and" in errors


def test_a_resumed_run_is_compared_where_it_goes_on(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert run(tmp_path, "--steps", "2", *out)[0] == 0
    status, last, errors = run(
        tmp_path, "--steps", "5", *out, "--resume", "--save", tmp_path / "weights"
    )
    assert status == 0, errors
    assert last["summary"]["steps"] == 3 and len(last["summary"]["reference"]["losses"]) == 5
    assert "saved the weights after 5 steps" in errors


def record(step: int, loss: float) -> Record:
    return Record(step, loss, 1.0, 0.1, 0.1, 1.0)


def test_which_step_differs_most(tmp_path: Path) -> None:
    made = compiled(tmp_path, SPEC)
    plain = [record(1, 2.0), record(2, 4.0), record(3, 1.0)]
    near = compare(made, [record(1, 2.0), record(2, 4.0003)], plain)
    assert near.tolerance == pytest.approx(4e-4) and near.fault() is None
    far = compare(made, [record(1, 2.0006), record(2, 4.0003)], plain)
    fault = far.fault()
    assert fault is not None and fault.message.startswith("in step 1 the loss is 2.0006 and")
    broken = compare(made, [record(1, 2.0006), record(2, math.nan)], plain)
    fault = broken.fault()
    assert fault is not None and fault.message.startswith("in step 2 the loss is nan and")
    assert broken.document()["max_difference"] is None


def test_losses_are_compared_up_to_a_step_that_one_of_them_skips(tmp_path: Path) -> None:
    """It has been computed with equal weights, so its loss is compared too."""
    plain = [record(1, 2.0), replace(record(2, 4.0), skipped=True), record(3, 4.0)]
    taken = [record(1, 2.0), record(2, 4.0), record(3, 1.0)]
    text = SPEC + "precision { compute = f16 loss_scale = dynamic }\n"
    made = compare(compiled(tmp_path, text), taken, plain)
    assert made.parted == made.document()["parted"] == 2 and made.fault() is None
    taken[1] = record(2, 5.0)
    fault = compare(compiled(tmp_path, text), taken, plain).fault()
    assert fault is not None and fault.message.startswith("in step 2 the loss is 5 and")
    made = compare(compiled(tmp_path, SPEC), taken, plain)
    assert made.parted is None and "parted" not in made.document() and made.fault() is not None


@pytest.mark.parametrize(
    ("types", "more", "tolerance"),
    [("f32", "", 1e-4), ("f32", "precision { compute = bf16 }", 5e-2), ("f64", "", 1e-9)],
)
def test_the_tolerance_is_that_of_the_narrowest_type(
    tmp_path: Path, types: str, more: str, tolerance: float
) -> None:
    text = SPEC.replace("f32", types).replace(f'model "{MODEL}:build"\n', "") + more
    dtype = torch.float64 if types == "f64" else torch.float32
    assert relative_tolerance(compiled(tmp_path, text, dtype)) == tolerance


def test_other_masks_are_not_compared(tmp_path: Path) -> None:
    text = SPEC.replace("dp = 1", "dp = 2") + "random fast\n"
    made = compare(compiled(tmp_path, text), [record(1, 9.0)], [record(1, 2.0)])
    assert made.tolerance is None and made.fault() is None


def compiled(folder: Path, text: str, dtype: torch.dtype | None = None) -> Any:
    """A spec on the model, which is given in a type or named by the spec."""
    path = folder / "spec.shard"
    path.write_text(text)
    if dtype is None:
        return shardlang.compile(path).compiled
    from tests.checkpoint.noisy import build

    return shardlang.compile(path, model=lambda: build().to(dtype)).compiled


def test_microbatches_that_draw_apart_are_not_compared(tmp_path: Path) -> None:
    """On one device too: each draws its own rows."""
    text = SPEC + "accumulate 2\nrandom fast\n"
    status, last, errors = run(tmp_path, "--steps", "2", spec=text)
    assert (status, last["ok"]) == (0, True), errors
    assert last["summary"]["reference"]["tolerance"] is None
    status, last, errors = run(tmp_path, "--steps", "2", spec=SPEC + "accumulate 2\n")
    assert (status, last["ok"]) == (0, True), errors
    assert last["summary"]["reference"]["tolerance"] is not None
