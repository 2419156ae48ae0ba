"""The folder of a run, and the table and the picture of runs."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

import pytest

from shardlang.cli import execute
from shardlang.runtime.errors import RunError
from shardlang.runtime.trainer.run_folder import (
    LOCK,
    LOG,
    RUN,
    SPEC,
    RunFolder,
    note_failure,
    records_of,
)
from shardlang.runtime.trainer.table import SPEEDS, runs_in
from shardlang.runtime.watch import WATCH
from shardlang.spec import load_spec
from shardlang.spec.flat import flat_text

MODEL = """
from torch import nn
def build(width=8):
    return nn.Sequential(nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, 1, bias=False))
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build()
    def forward(self, x):
        return self.inner(x).square().mean()
"""
TEXT = """mesh { dp = 1 }
model "model.py:Net"
input x : f32[4, 8] [dp, _]
optimizer sgd(lr = 0.1)
learning_rate linear(steps = 4)
evaluate every 2 batches 2
cluster { peak f32 = 1e6 }
"""
AT_PEAK_S = 2 * (2 * 4 * 8 * 5 + 3 * 4 * 5 * 1) / 1e6
"""Of a step: forward and gradient of the weight twice, and the gradient between them."""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "a.shard").write_text(TEXT)
    return tmp_path / "a.shard"


def run(spec: Path, out: Path, steps: int, *more: str) -> int:
    return execute(["run", str(spec), "--steps", str(steps), "--out", str(out), *more])


def test_a_run_has_a_folder(spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it is, each step, and the same log after a resume as of a run without a break."""
    whole, broken = tmp_path / "runs" / "whole", tmp_path / "runs" / "broken"
    assert run(spec, whole, 5) == 0
    assert run(spec, broken, 3) == 0
    assert run(spec, broken, 5, "--resume") == 0
    capsys.readouterr()
    loaded, _ = load_spec(spec)
    assert loaded is not None and (whole / SPEC).read_text() == flat_text(loaded)
    about = json.loads((whole / RUN).read_text())
    assert (about["state"], about["seed"], about["steps"]) == ("ended", 0, 5)
    assert about["mesh"] == {"dp": 1}
    assert {"versions", "program", "began", "ended"} <= about.keys()
    assert (whole / LOCK).read_text() == "" and "resumed" not in about
    again = json.loads((broken / RUN).read_text())
    (resumed,) = again["resumed"]
    assert resumed["step"] == 3 and again["began"] < resumed["time"] < again["ended"]
    assert run(spec, broken, 5, "--resume") == 0
    third = json.loads((broken / RUN).read_text())
    assert third["began"] == again["began"]
    assert [one["step"] for one in third["resumed"]] == [3, 5]
    capsys.readouterr()
    first, second = records_of(whole), records_of(broken)
    assert [line["step"] for line in first] == [1, 2, 3, 4, 5]
    assert [line["lr"] for line in first] == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0])
    assert ["eval_loss" in line for line in first] == [False, True, False, True, False]
    same = ("step", "loss", "grad_norm", "lr", "eval_loss")
    assert [[x.get(k) for k in same] for x in first] == [[x.get(k) for k in same] for x in second]
    assert all(line["peak_bytes"] and line["exposed_s"] == 0 for line in first)
    for line in first:
        assert line["mfu"] * line["step_s"] == pytest.approx(AT_PEAK_S, rel=0.01)
    rows = runs_in(tmp_path / "runs")
    assert [(row.name, row.state, row.step) for row in rows] == [
        ("whole", "ended", 5), ("broken", "ended", 5),
    ]  # fmt: skip
    assert rows[0].loss == first[-1]["loss"]
    picture = tmp_path / "curves.svg"
    assert execute(["runs", str(tmp_path / "runs"), "--plot", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = ["run", "state", "step", "loss", "tokens/s", "mfu", "exposed s", "peak", "when"]
    assert re.split("  +", lines[0]) == titles
    middle = {key: median([float(line[key]) for line in first[1:]]) for key in SPEEDS}
    speeds = f"{middle['tokens_per_s']:,.0f}", f"{middle['mfu']:.1%}", "0.000"
    assert re.split("  +", lines[1])[:7] == [
        "whole", "ended", "5", f"{rows[0].loss:.4f}", *speeds,
    ]  # fmt: skip
    curves = ElementTree.parse(picture).getroot().findall("{*}polyline")
    assert [len(curve.get("points", "").split()) for curve in curves] == [5, 5, 5, 5]
    assert execute(["runs", str(tmp_path / "runs"), "--plot", "curves.pdf"]) == 2
    assert execute(["runs", str(tmp_path / "runs"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["step"] for row in document["runs"]] == [5, 5]
    told = document["runs"][0]
    assert {key: told[key] for key in SPEEDS} == pytest.approx(middle, abs=1e-6)
    assert told["peak_bytes"] == max(line["peak_bytes"] for line in first)


def test_a_run_is_seen_in_other_tools(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trace of one step, with a name for the norm; and curves that TensorBoard reads."""
    out = tmp_path / "out"
    assert run(spec, out, 2, "--profile", "2") == 0
    (trace,) = (out / "profile").iterdir()
    assert trace.name == "step-000002.json"
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "norm of the gradients" in names
    pytest.importorskip("tensorboard")
    assert run(spec, tmp_path / "curves", 2, "--tensorboard") == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "curves" / "tensorboard"))
    read.Reload()
    want = [line["loss"] for line in records_of(tmp_path / "curves")]
    assert [event.value for event in read.Scalars("loss")] == pytest.approx(want, rel=1e-6)
    assert [event.step for event in read.Scalars("eval_loss")] == [2]
    for key in ("mfu", "exposed_s", "peak_bytes"):
        assert len(read.Scalars(key)) == 2
    assert execute(["run", str(spec), "--profile", "1"]) == 2
    assert run(spec, tmp_path / "late", 2, "--profile", "3") == 2
    assert "step 3 comes after the last one, 2" in capsys.readouterr().err


def test_a_second_run_is_refused_and_a_dead_one_is_not(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with RunFolder(out, TEXT, {}) as holder:
        holder.begin(0)
        assert [row.state for row in runs_in(out)] == ["running"]
        with pytest.raises(RunError, match=r"a run is under way in .* by process \d+") as caught:
            RunFolder(out, TEXT, {})
        assert caught.value.code == "SH0664"
        assert run(spec, out, 1) == 1
    assert "a run is under way" in capsys.readouterr().err
    (out / LOCK).write_text('{"pid": 1}\n')
    about = json.loads((out / RUN).read_text()) | {"state": "running"}
    (out / RUN).write_text(json.dumps(about))
    assert [row.state for row in runs_in(tmp_path)] == ["killed"]
    assert run(spec, out, 1) == 0
    assert "was killed" in capsys.readouterr().err
    assert [row.state for row in runs_in(tmp_path)] == ["ended"]


@pytest.mark.parametrize(
    ("error", "state"), [(ValueError("no"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_run_that_breaks_off_says_how(tmp_path: Path, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)), RunFolder(tmp_path, TEXT, {}) as folder:
        folder.begin(0)
        raise error
    about: dict[str, Any] = json.loads((tmp_path / RUN).read_text())
    assert (about["state"], about["message"]) == (state, str(error))


def test_who_watches_a_run_says_why_it_ended(tmp_path: Path) -> None:
    """Of the run that it started: rank 0 knows less, and nothing if it was killed."""
    before = datetime.now().astimezone() - timedelta(seconds=1)
    with pytest.raises(RuntimeError), RunFolder(tmp_path, TEXT, {}) as folder:
        folder.begin(0)
        note_failure(tmp_path, "rank 0 was killed", before)
        assert _ended(tmp_path) == ("killed", "rank 0 was killed")
        WATCH.now = "send of x"
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")
    WATCH.now = ""
    assert _ended(tmp_path) == ("failed", "lost a peer in send of x")
    note_failure(tmp_path, "rank 1 was killed", datetime.now().astimezone() + timedelta(seconds=9))
    assert _ended(tmp_path)[1] == "lost a peer in send of x"
    note_failure(tmp_path, "rank 1 was killed", before)
    assert _ended(tmp_path) == ("failed", "rank 1 was killed")


def test_a_run_that_could_not_note_its_end_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk takes no note of it, and yet the process gave the folder back."""
    before = datetime.now().astimezone() - timedelta(seconds=1)
    with pytest.raises(RuntimeError), RunFolder(tmp_path, TEXT, {}) as folder:
        folder.begin(0)
        monkeypatch.setattr(folder, "_write_run", lambda: os.write(99999, b""))
        raise RuntimeError("the disk is full")
    assert _ended(tmp_path)[0] == "running"
    note_failure(tmp_path, "rank 0 failed: the disk is full", before)
    assert _ended(tmp_path) == ("failed", "rank 0 failed: the disk is full")


def _ended(folder: Path) -> tuple[str, str]:
    about: dict[str, str] = json.loads((folder / RUN).read_text())
    return about["state"], about.get("message", "")


def test_a_log_that_was_cut_off_is_read(tmp_path: Path) -> None:
    """Steps after the checkpoint that a run went on from were taken again."""
    lines = [
        {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 9.0},
        {"event": "resumed", "step": 1}, {"step": 2, "loss": 2.5},
    ]  # fmt: skip
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 3, "lo'
    (tmp_path / LOG).write_text(text)
    assert [line["loss"] for line in records_of(tmp_path)] == [3.0, 2.5]


ENDING = """
import os, signal, torch
def batches(seed):
    for number in range(99):
        if (seed, number) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        yield {"x": torch.ones(4, 8)}
"""
"""Asks the run to end when the third batch of an evaluation is read."""


def test_a_signal_drops_the_evaluation_and_the_steps_are_saved(spec: Path, tmp_path: Path) -> None:
    (spec.parent / "model.py").write_text(MODEL + ENDING)
    spec.write_text(TEXT.replace("every 2 batches 2", "every 2 batches 50"))
    assert run(spec, tmp_path / "out", 4) == 0
    assert _ended(tmp_path / "out")[0] == "interrupted"
    assert [x.name for x in (tmp_path / "out/checkpoints").glob("step-*")] == ["step-000002"]
    last = records_of(tmp_path / "out")[-1]
    assert last["step"] == 2 and "eval_loss" not in last


def test_a_resume_writes_behind_the_last_whole_line(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": float(step)}) for step in (1, 2, 3, 4)]
    (tmp_path / LOG).write_text("\n".join(lines) + '\n{"step": 5, "lo')
    with RunFolder(tmp_path, TEXT, {}) as folder:
        folder.begin(2)
    assert [line["step"] for line in records_of(tmp_path)] == [1, 2]
    *kept, resumed = (tmp_path / LOG).read_text().splitlines()
    assert kept == lines and json.loads(resumed)["event"] == "resumed"


def test_steps_that_are_taken_again_replace_all_later_ones(tmp_path: Path) -> None:
    """Of a log in which the line of the resume is no line of its own."""
    glued = '{"step": 5, "lo{"event": "resumed", "step": 2}'
    lines = [json.dumps({"step": step}) for step in (1, 2, 3, 4)]
    (tmp_path / LOG).write_text("\n".join([*lines, glued, '{"step": 3, "loss": 1.5}']) + "\n")
    assert [line["step"] for line in records_of(tmp_path)] == [1, 2, 3]
    assert records_of(tmp_path)[-1]["loss"] == 1.5


def test_a_full_disk_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError), RunFolder(tmp_path, TEXT, {}) as folder:
        folder.begin(0)
    assert not (tmp_path / f".{RUN}").exists()


def test_a_full_disk_is_said_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the log, which fails once more when it is closed, and at the lock."""
    (tmp_path / LOG).symlink_to("/dev/full")
    with (
        pytest.raises(RunError, match="no space left") as caught,
        RunFolder(tmp_path, TEXT, {}) as at,
    ):
        at.begin(3)
    assert (caught.value.code, "make room" in caught.value.help) == ("SH0609", True)
    assert (tmp_path / LOCK).read_text() == ""

    def full(value: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(RunError, match="no space left"):
        RunFolder(tmp_path / "other", TEXT, {})


def test_a_resume_says_that_the_model_is_written_anew(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same spec, the same weights, other code."""
    assert run(spec, tmp_path / "out", 2) == 0
    assert run(spec, tmp_path / "out", 3, "--resume") == 0
    assert "another program" not in capsys.readouterr().err
    (spec.parent / "model.py").write_text(MODEL.replace("nn.Tanh", "nn.ReLU"))
    sys.modules.pop("model", None)
    assert run(spec, tmp_path / "out", 4, "--resume") == 0
    assert "since the checkpoint, the same spec gives another program" in capsys.readouterr().err
