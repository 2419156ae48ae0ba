"""`shardlang run --out FOLDER`: what is saved, resumed and refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from shardlang import compile as compile_spec
from shardlang.runtime.checkpoint import finding
from shardlang.runtime.checkpoint.manifest import sha256_of
from shardlang.training import room
from tests.commands import ROOT, shardlang
from tests.runtime.forking import completed

MODEL = Path(__file__).with_name("noisy.py")
SPEC = f"""
mesh {{ dp = 1 }}
model "{MODEL}:build"
input x : f32[4, 6] [dp, _]
input y : f32[4, 3] [dp, _]
optimizer adamw(lr = 0.05, clip = 0.5)
checkpoint every 2 keep 2
"""


def run(
    folder: Path, steps: int, *more: str, spec: str = SPEC, out: str = "out"
) -> tuple[int, list[dict[str, Any]], str]:
    """The exit status, the lines and the messages of a run."""
    path = folder / "spec.shard"
    path.write_text(spec)
    status, said, errors = shardlang(
        "run", path, "--steps", str(steps), "--out", folder / out, *more
    )
    return status, [json.loads(line) for line in said.splitlines()], errors


def losses(lines: list[dict[str, Any]]) -> list[float | None]:
    """The losses of all steps."""
    return [line["loss"] for line in lines if "step" in line]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[float | None]:
    """Seven steps without a break."""
    status, lines, errors = run(tmp_path_factory.mktemp("straight"), 7)
    assert status == 0, errors
    return losses(lines)


def test_a_run_goes_on_to_the_bit(
    tmp_path: Path, straight: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM ends it with a checkpoint and status 0; dropout, data and schedule go on."""
    monkeypatch.setenv("HARM", "term:4")
    status, lines, errors = run(tmp_path, 7)
    assert (status, losses(lines)) == (0, straight[:3]), errors
    assert lines[-1]["summary"]["checkpoint"] == 3 and lines[-1]["summary"]["interrupted"]
    monkeypatch.delenv("HARM")
    status, lines, errors = run(tmp_path, 7)
    assert status == 1 and "error[SH0664]" in errors and "--resume" in errors
    status, lines, errors = run(tmp_path, 7, "--resume")
    assert (status, losses(lines)) == (0, straight[3:]), errors
    assert "goes on after step 3" in errors
    assert sorted(path.name for path in (tmp_path / "out/checkpoints").glob("step-*")) == [
        "step-000006", "step-000007",
    ]  # fmt: skip
    status, lines, errors = run(tmp_path, 5, "--resume")
    assert (status, losses(lines)) == (0, [])
    assert "the run has taken 7 steps, and `--steps 5` ends it" in errors


def test_a_loop_and_the_command_go_on_from_each_other(
    tmp_path: Path, straight: list[float]
) -> None:
    """Two steps by the command, two in a loop of one's own, and the rest by the command again."""
    status, lines, errors = run(tmp_path, 2)
    assert status == 0, errors
    found = losses(lines)
    program = compile_spec(tmp_path / "spec.shard")
    program.load(seed=9)
    trainer = program.trainer()
    with program.checkpoints(tmp_path / "out/checkpoints") as checkpoints:
        assert checkpoints.load(trainer.state()) == 2
        found += [record.loss for record in trainer.steps(2)]
        checkpoints.save(trainer.step_number, trainer.state())
    status, lines, errors = run(tmp_path, 7, "--resume")
    assert (status, found + losses(lines)) == (0, straight), errors


def test_other_statements_of_layouts_are_said(tmp_path: Path) -> None:
    assert run(tmp_path, 2)[0] == 0
    other = SPEC + "accumulate 2 # for memory\n"
    status, _, errors = run(tmp_path, 3, "--resume", spec=other)
    assert status == 0 and "the run before did not state `accumulate 2`" in errors
    status, _, errors = run(tmp_path, 4, "--resume", spec=SPEC)
    assert status == 0 and "the run before stated `accumulate 2`" in errors


PHASES = "learning_rate warmup(steps = 2) cosine(steps = 8)\n"


def test_another_learning_rate_holds_from_the_next_step(tmp_path: Path) -> None:
    """And a scheduler of torch in its place is refused."""
    assert run(tmp_path, 4, spec=SPEC + PHASES)[0] == 0
    flat = SPEC + "learning_rate constant(steps = 5)\n"
    status, lines, errors = run(tmp_path, 6, "--resume", spec=flat)
    assert status == 0 and "since the checkpoint, `learning_rate` was warmup" in errors
    assert [line["lr"] for line in lines if "step" in line] == [0.05, 0.05]
    named = SPEC + "learning_rate steplr(step_size = 2)\n"
    status, _, errors = run(tmp_path, 8, "--resume", spec=named)
    assert status == 1 and "SH0665" in errors
    assert "goes on from its own state alone" in " ".join(errors.split())


def test_another_run_is_refused_and_what_may_change_is_said(tmp_path: Path) -> None:
    assert run(tmp_path, 1)[0] == 0
    other = SPEC.replace("lr = 0.05", "lr = 0.5").replace("clip = 0.5", "clip = 1.0")
    status, _, errors = run(tmp_path, 2, "--resume", spec=other)
    assert status == 1 and "error[SH0665]" in errors
    assert "`optimizer` was adamw(clip = 0.5, lr = 0.05) and is adamw(clip = 1.0, lr = 0.5)" in (
        " ".join(errors.split())
    )
    assert "`manifest.json`" in errors
    status, _, errors = run(tmp_path, 2, "--resume", spec=SPEC + "random fast")
    assert status == 0 and "since the checkpoint, `random` was exact and is fast" in errors


def test_a_run_goes_on_with_its_own_seed(tmp_path: Path) -> None:
    """Another one is refused; without one, the batches of an evaluation stay the same."""
    spec = SPEC + "evaluate every 1 batches 1\n"
    whole = run(tmp_path, 3, "--seed", "4", spec=spec, out="whole")[1]
    assert run(tmp_path, 2, "--seed", "4", spec=spec)[0] == 0
    status, _, errors = run(tmp_path, 3, "--seed", "5", "--resume", spec=spec)
    assert status == 2 and "'--seed'" in errors and "has the seed 4" in " ".join(errors.split())
    status, lines, errors = run(tmp_path, 3, "--resume", spec=spec)
    assert status == 0, errors
    assert [lines[0][key] for key in ("step", "loss", "eval_loss")] == [
        whole[2][key] for key in ("step", "loss", "eval_loss")
    ]
    assert lines[-1]["summary"]["seed"] == 4


def test_a_resume_reads_a_checkpoint_once_to_check_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, 1)[0] == 0
    read: list[str] = []

    def counted(stream: BinaryIO) -> str:
        read.append(Path(stream.name).name)
        return sha256_of(stream)

    monkeypatch.setattr(finding, "sha256_of", counted)
    assert run(tmp_path, 2, "--resume")[0] == 0
    assert read and len(read) == len(set(read))


def test_only_what_differs_is_printed_and_its_statement_is_shown(tmp_path: Path) -> None:
    """The spec uses another file, in which the statements stand."""
    assert run(tmp_path, 1, spec=SPEC + 'group "*.bias" (weight_decay = 0.0)\n')[0] == 0
    (tmp_path / "base.shard").write_text(SPEC + 'group "*.bias" (weight_decay = 0.5)\n')
    status, _, errors = run(tmp_path, 2, "--resume", spec='use "base.shard"\n')
    said = " ".join(errors.split())
    assert status == 1 and "base.shard:8:1" in errors
    assert "`weight_decay = 0.0` and have `weight_decay = 0.5`" in said
    assert "weight`" not in said and str(tmp_path / "out" / "spec.shard") in said
    lines = "precision { compute = bf16 }\n"
    status, _, errors = run(tmp_path, 2, "--resume", spec=f'use "base.shard"\n{lines}')
    said = " ".join(errors.split())
    assert "`precision` was not stated and is compute = bf16" in said and "Precision(" not in said
    status, _, errors = run(tmp_path, 2, "--resume", spec=SPEC + lines)
    assert "of `group`, " in errors and "and are in none" in " ".join(errors.split())


EVALUATE = 'evaluate every 1 batches 1 on "none.txt"\n'


def test_what_a_run_cannot_read_is_shown_at_its_statement(tmp_path: Path) -> None:
    """And at none, where it is on the command line."""
    status, _, errors = run(tmp_path, 1, spec=SPEC + EVALUATE)
    assert status == 1 and "error[SH0651]" in errors and "spec.shard:8:1" in errors
    assert str(tmp_path / "none.txt") in errors
    status, _, errors = run(tmp_path, 1, spec=SPEC + 'data "none.bin"\n')
    assert status == 1 and "error[SH0651]" in errors and "spec.shard:8:1" in errors
    status, _, errors = run(tmp_path, 1, "--data", "none.bin", spec=SPEC + 'data "other.bin"\n')
    assert status == 1 and "error[SH0651]" in errors and "spec.shard:" not in errors


def test_so_it_is_where_several_ranks_read(tmp_path: Path) -> None:
    path = tmp_path / "spec.shard"
    path.write_text(SPEC.replace("dp = 1", "dp = 2") + EVALUATE)
    asked = [str(path), "--steps", "1", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "shardlang", "run", *asked]
    done = completed(command, {**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    assert "error[SH0651]" in done.stderr and "spec.shard:8:1" in done.stderr


def test_the_folder_holds_a_spec_that_stands_alone(tmp_path: Path) -> None:
    (tmp_path / "base.shard").write_text(SPEC)
    assert run(tmp_path, 1, spec='use "base.shard"\n')[0] == 0
    (tmp_path / "base.shard").unlink()
    status, _, errors = shardlang("check", tmp_path / "out" / "spec.shard")
    assert status == 0, errors
    text = (tmp_path / "out" / "spec.shard").read_text()
    manifest = next((tmp_path / "out" / "checkpoints").glob("*/manifest.json"))
    assert json.loads(manifest.read_text())["about"]["spec"] == text


def test_a_step_that_is_not_finite_ends_the_run_is_skipped_or_rolls_back(
    tmp_path: Path, straight: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARM", "nan:4")
    status, lines, errors = run(tmp_path, 7)
    assert status == 1 and "error[SH0630]" in errors
    assert "the last checkpoint is that of step 2: go on from there with `--resume`" in errors
    skipping = SPEC.replace("keep 2", "on_nan skip")
    status, lines, errors = run(tmp_path, 7, spec=skipping, out="skip")
    assert status == 0, errors
    assert losses(lines)[:4] == [*straight[:3], None] and lines[3]["skipped"] and len(lines) == 8
    monkeypatch.setenv("HARM", "nan:4,nan:5")
    rolling = SPEC.replace("keep 2", "on_nan rollback")
    status, lines, errors = run(tmp_path, 7, spec=rolling, out="back")
    assert "loss is nan and grad_norm is nan in step 4: back to step 2" in errors
    assert status == 1 and "error[SH0630]" in errors  # the second one, from the same checkpoint
    monkeypatch.setenv("HARM", "nan:4")
    status, lines, errors = run(tmp_path, 7, spec=rolling, out="again")
    assert status == 0, errors
    assert [line["step"] for line in lines[:-1]] == [1, 2, 3, 4, 3, 4, 5, 6, 7]


def test_too_little_memory_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda device: 1000)
    status, lines, errors = run(tmp_path, 1)
    assert (status, lines) == (1, [])
    said = " ".join(errors.split())
    assert "error[SH0666]: a process needs " in said and "and 1000 B are free here" in said
    monkeypatch.setattr(room, "free_bytes", lambda device: 60_000)
    assert run(tmp_path, 1)[0] == 0
    monkeypatch.undo()
    found = room.free_bytes(torch.device("cpu"))
    assert found is not None and found > 2**20


def test_the_statement_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "spec.shard").write_text(SPEC)
    status, _, errors = shardlang("run", tmp_path / "spec.shard", "--steps", "1")
    assert status == 1 and "error[SH0664]" in errors and "spec.shard:7:1" in errors
    status, _, errors = shardlang("run", tmp_path / "spec.shard", "--resume")
    assert status == 2 and "needs `--out FOLDER`" in errors
