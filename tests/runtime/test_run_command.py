"""`shardlang run` from the outside: lines, weights, exit statuses."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardlang.cli import execute
from shardlang.ir import compat
from shardlang.ir.compat import Backend
from tests.runtime.forking import completed, python

HERE = Path(__file__).parent
SPEC = str(HERE / "tiny.shard")
ENV = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}


def command(*args: str) -> list[str]:
    """A run on two devices."""
    return [sys.executable, "-m", "shardlang", "run", *args, "--set", "copies=1"]


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    """The command line in a fork, its ranks forked too; what forks it lies in a folder."""
    return subprocess.Popen(
        [python(folder), *command(*args)[1:]],
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def altered(folder: Path, old: str, new: str) -> str:
    """A copy of the spec with a text replaced."""
    text = Path(SPEC).read_text().replace('"tiny.py', f'"{HERE}/tiny.py')
    assert old in text
    path = folder / "altered.shard"
    path.write_text(text.replace(old, new))
    return str(path)


def test_lines_weights_and_reference(tmp_path: Path) -> None:
    asked = [SPEC, "--steps", "3", "--save", str(tmp_path), "--reference"]
    done = completed(command(*asked), ENV, timeout=120)
    assert done.returncode == 0, done.stderr
    *steps, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert [list(step) for step in steps] == [
        [
            "step", "loss", "grad_norm", "lr", "step_s", "tokens_per_s", "exposed_s", "peak_bytes",
        ]
    ] * 3  # fmt: skip
    assert last["schema"] == 1
    assert last["ok"] is True
    assert last["set"] == {"copies": 1}
    found: dict[str, Any] = last["summary"]
    assert found["mesh"] == {"dp": 1, "tp": 2}
    for key, rounded in (("step_s", 2e-6), ("tokens_per_s", 0.1), ("exposed_s", 2e-6)):
        middle = statistics.median(x[key] for x in steps[1:])
        assert found[key] == pytest.approx(middle, abs=rounded)
    assert found["exposed_s"] > 0 and found["mfu"] is None
    assert found["peak_bytes"] == max(x["peak_bytes"] for x in steps)
    assert found["reference"]["max_difference"] < 1e-5
    assert (tmp_path / "model.safetensors").is_file()


def test_an_error_in_the_spec_is_said_once(tmp_path: Path) -> None:
    spec = altered(tmp_path, '"embed.weight"', '"embedding.weight"')
    done = completed(command(spec), ENV, timeout=120)
    assert (done.returncode, done.stderr.count("error["), done.stdout) == (1, 1, "")


ROOTED = """import torch
class Rooted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(3))
    def forward(self, x):
        return {"loss": (x * self.w).square().mean().sqrt()}
"""


def test_a_batch_that_cannot_be_accumulated_is_said_once_at_its_line(tmp_path: Path) -> None:
    (tmp_path / "rooted.py").write_text(ROOTED)
    spec = tmp_path / "rooted.shard"
    spec.write_text(
        'mesh { dp = 2 }\nlet copies = 1\nmodel "rooted.py:Rooted"()\n'
        "input x : f32[8, 3] [dp, _]\naccumulate 2\n"
    )
    done = completed(command(str(spec)), ENV, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("error[")) == (1, "", 1)
    assert "error[SH0409]" in done.stderr and "rooted.py:7:" in done.stderr


def test_ctrl_c_ends_the_run(tmp_path: Path) -> None:
    process = start(tmp_path, SPEC, "--steps", "1000000")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["step"] == 1
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"


def test_one_device_runs_in_place_compiled_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = altered(tmp_path, "tp = 2", "tp = 1")
    assert execute(["run", spec, "--set", "copies=1", "--steps", "1"]) == 0
    step, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert step["step"] == 1
    assert last["summary"]["devices"] == 1
    loss, asked = last["summary"]["loss"], []

    def instead(name: str) -> Backend:
        asked.append(name)
        return named("aot_eager")

    named = compat.backend_named
    monkeypatch.setattr(compat, "backend_named", instead)
    assert execute(["run", spec, "--set", "copies=1", "--steps", "1", "--compile"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert asked == ["inductor"]
    assert last["summary"]["loss"] == pytest.approx(loss, rel=1e-6)


def test_another_number_of_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert execute(["run", SPEC, "--json"]) == 1
    finding = json.loads(capsys.readouterr().out)["diagnostics"][0]
    assert finding["code"] == "SH0601"
    assert finding["message"].startswith("3 processes were started")


@pytest.mark.parametrize("args", [("--node-rank", "1"), ("--nnodes", "2"), ("--steps", "0")])
def test_wrong_use(args: tuple[str, ...]) -> None:
    assert execute(["run", SPEC, *args]) == 2
