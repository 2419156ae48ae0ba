"""`run` loses nothing: signals, failures and a loss that is not finite leave the weights saved."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shardlang.capture import PythonSource, load_plain
from shardlang.cli import execute
from shardlang.ir.mesh import Axis, Mesh
from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.stop import Stop
from tests.runtime.forking import python

ROOT = Path(__file__).parents[2]
SPEC = """
mesh {{ dp = {devices} }}
model "model.py:build"
input x : f32[6, 3] [dp, _]
optimizer sgd(lr = 0.1)
"""
MODEL = """
import os, signal, torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(3, 5)
    def forward(self, x):
        y = self.up(x)
        return {result}

def build():
    return Model(){frozen}

def batches(seed):
    made = torch.Generator().manual_seed(seed)
    for step in range(1, 1000):
        x = torch.randn(6, 3, generator=made)
        if step == 3:
            {third}
        yield {{"x": x}}
"""
LOSS = '{"loss": (y * y).mean()}'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    write(tmp_path)
    return tmp_path


def write(
    folder: Path, third: str = "pass", result: str = LOSS, frozen: str = "", devices: int = 1
) -> None:
    """A model whose third batch is made as told, and its spec."""
    (folder / "model.py").write_text(MODEL.format(third=third, result=result, frozen=frozen))
    (folder / "spec.shard").write_text(SPEC.format(devices=devices))


def trained(steps: int) -> torch.Tensor:
    """The weight of the plain model after some steps by hand."""
    made = torch.Generator().manual_seed(0)
    up: Any = load_plain(PythonSource("model.py:build"), 0).up
    for _ in range(steps):
        y = up(torch.randn(6, 3, generator=made))
        up.zero_grad()
        (y * y).mean().backward()
        with torch.no_grad():
            for param in up.parameters():
                assert param.grad is not None
                param -= 0.1 * param.grad
    return up.weight.detach()


def saved(path: Path) -> torch.Tensor:
    return load_file(path / "model.safetensors")["up.weight"]


def run(*args: str) -> int:
    return execute(["run", "spec.shard", "--seed", "0", *args])


def test_a_batch_too_small_for_its_microbatches_loses_no_step(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, third="x = x[:1]")
    with (folder / "spec.shard").open("a") as spec:
        spec.write("accumulate 2\n")
    assert run("--steps", "5", "--save", "weights") == 1
    err = " ".join(capsys.readouterr().err.split())
    assert "saved the weights after 2 steps in `weights`" in err
    assert "error[SH0605]: a batch of 1 row is too small for a step" in err
    assert "give every batch 2 rows or more" in err
    torch.testing.assert_close(saved(folder / "weights"), trained(2))


def test_a_signal_saves_after_the_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    for name, status in (("SIGINT", 130), ("SIGTERM", 143)):
        write(folder, third=f"os.kill(os.getpid(), signal.{name}); open('waited', 'w')")
        assert run("--steps", "50", "--save", name) == status
        out, err = capsys.readouterr()
        assert f"saved the weights after 2 steps in `{name}`" in err
        last = json.loads(out.splitlines()[-1])
        assert (last["ok"], last["summary"]["interrupted"], last["summary"]["steps"]) == (
            False, True, 2,
        )  # fmt: skip
        torch.testing.assert_close(saved(folder / name), trained(2))
        assert not (folder / "waited").exists()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("third", "said"),
    [
        ("x = x / 0", "the loss is nan and the norm of the gradients is nan in step 3"),
        ("x = x * 1e30", "the loss is inf and the norm of the gradients is"),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run_before_its_step(
    third: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, third=third)
    assert run("--steps", "9", "--save", "w") == 1
    out, err = capsys.readouterr()
    assert "error[SH0630]" in err and said in err
    lines = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert [line["loss"] is None for line in lines] == [False, False, True]
    assert lines[2]["not_finite"]["loss"] in ("nan", "inf")
    torch.testing.assert_close(saved(folder / "w"), trained(2))


def test_an_error_of_the_persons_is_shown_as_theirs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    third = 'exec("try:\\n    [][0]\\nexcept IndexError as e:\\n    raise KeyError(3) from e")'
    write(folder, third=third)
    assert run("--steps", "9", "--save", "w") == 1
    _, err = capsys.readouterr()
    assert "error[SH0603]: KeyError: 3 (model.py:" in err
    assert "IndexError: list index out of range" in err
    assert "direct cause" in err and "in batches" in err
    assert err.count("KeyError: 3") == 2
    assert "shardlang/r" not in err and "internal error" not in err
    torch.testing.assert_close(saved(folder / "w"), trained(2))


def test_an_error_of_the_constructor_is_shown_once_with_its_cause(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (folder / "model.py").read_text()
    helper = (
        "def look(n):\n    try:\n        return {}[n]\n    except KeyError as e:\n"
        "        raise ValueError('no such size') from e\n"
    )
    called = text.replace("super().__init__()", "super().__init__(); look(7)")
    (folder / "model.py").write_text(helper + called)
    assert run("--steps", "1") == 1
    _, err = capsys.readouterr()
    assert "error[SH0352]" in err and err.count("KeyError: 7") == 1
    assert err.count("ValueError: no such size") == 2 and "in __init__" in err
    assert "shardlang/" not in err and "site-packages" not in err


@pytest.mark.parametrize(
    ("result", "frozen", "said"),
    [
        (
            LOSS.replace("mean()", "mean().detach()"),
            "",
            "error[SH0511]: no gradient flows from the loss",
        ),
        (
            LOSS,
            ".requires_grad_(False)",
            "error[SH0631]: the model has no parameter that can be trained",
        ),
    ],
)
def test_nothing_to_train_is_said_before_the_first_step(
    result: str, frozen: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, result=result, frozen=frozen)
    assert run("--steps", "2") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in " ".join(err.split())


def test_a_model_without_a_loss_runs_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, result="y")
    assert run("--steps", "1") == 0
    assert "nothing is trained" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--log-dir", "logs"), ("--nnodes", "2")])
def test_a_supervisors_options_are_refused_without_one(
    option: tuple[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*option, "--rdzv-endpoint", "127.0.0.1:1") == 2
    assert option[0] in capsys.readouterr().err


def test_a_full_disk_leaves_the_old_weights_and_the_new_ones_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--steps", "1", "--save", "w") == 0
    old = (folder / "w/model.safetensors").read_bytes()
    write(
        folder, third="pathlib=__import__('pathlib'); pathlib.Path('w/.shardlang-saving').touch()"
    )
    (folder / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder / "elsewhere"))
    assert run("--steps", "3", "--save", "w") == 1
    err = " ".join(capsys.readouterr().err.split())
    assert "error[SH0609]" in err and "what `w` held is unchanged" in err
    assert (folder / "w/model.safetensors").read_bytes() == old
    (rescued,) = (folder / "elsewhere").glob("shardlang-weights-*")
    assert f"the weights are in `{rescued}` instead" in err
    torch.testing.assert_close(saved(rescued), trained(3))
    (folder / "w/.shardlang-saving").unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    write(folder, third=f"__import__('resource').setrlimit(1, (64, {limits[1]}))")
    try:
        assert run("--steps", "3", "--save", "w") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    err = " ".join(capsys.readouterr().err.split())
    assert "error[SH0609]" in err and "the weights are lost" in err
    assert [path.name for path in (folder / "w").iterdir()] == ["model.safetensors"]
    assert (folder / "w/model.safetensors").read_bytes() == old


def test_batches_that_end_on_one_rank_end_the_run_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the rank whose batches go on sees it: the other one's have ended."""
    stop = Stop(Groups(Mesh((Axis("dp", 1),)), 0))
    monkeypatch.setattr(stop, "_transport", SimpleNamespace(all_reduce=lambda mine, op: mine))
    assert len(list(stop.batches(iter([{}, {}])))) == 2
    assert stop.error is None
    other = torch.tensor([0, 1, 0])
    monkeypatch.setattr(
        stop, "_transport", SimpleNamespace(all_reduce=lambda mine, op: torch.maximum(mine, other))
    )
    assert list(stop.batches(iter([{}, {}]))) == []
    assert isinstance(stop.error, RunError)
    assert "ended before those of the others" in stop.error.message


def test_a_signal_that_comes_while_ranks_agree_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends the run one step later, under the number of the signal."""
    stop = Stop(Groups(Mesh((Axis("dp", 1),)), 0))
    rounds = list[int]()

    def all_reduce(mine: torch.Tensor, op: str) -> torch.Tensor:
        rounds.append(int(mine[0]))
        if len(rounds) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return mine

    monkeypatch.setattr(stop, "_transport", SimpleNamespace(all_reduce=all_reduce))
    with stop:
        assert len(list(stop.batches(iter([{}] * 9)))) == 2
    assert rounds == [0, 0, signal.SIGTERM]
    assert stop.number == signal.SIGTERM


def test_no_batch_is_waited_for_once_a_signal_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes within a step, and the batch behind that would never come."""
    stop = Stop(Groups(Mesh((Axis("dp", 1),)), 0))
    monkeypatch.setattr(stop, "_transport", SimpleNamespace(all_reduce=lambda mine, op: mine))

    def given() -> Iterator[dict[str, torch.Tensor]]:
        yield {}
        raise RuntimeError("a batch is asked for")

    with stop:
        for _ in stop.batches(given()):
            os.kill(os.getpid(), signal.SIGTERM)
    assert (stop.number, stop.error) == (signal.SIGTERM, None)


def test_signals_and_a_closed_pipe_on_processes(folder: Path) -> None:
    """In jobs of two: a signal while one waits for the other's batch, and batches that end on one.

    A reader that leaves after a line, and Ctrl-C, which ends with 130 with checkpoints too.
    """
    second = "os.environ.get('RANK') == '1'"
    write(folder, third=f"if {second}: return", devices=2)
    (folder / "ends.py").write_text((folder / "model.py").read_text())
    (folder / "ends.shard").write_text(SPEC.format(devices=2).replace("model.py", "ends.py"))
    write(folder, third=f"if {second}: __import__('time').sleep(600)", devices=2)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (folder / "alone.shard").write_text(SPEC.format(devices=1))
    command = [python(folder), "-m", "shardlang", "run", "--steps", "999"]
    jobs: list[tuple[Any, str, int]] = []
    asked = (
        ("spec", "signal", 143),
        ("alone", "pipe", 141),
        ("ends", "", 1),
        ("spec", "kept", 130),
    )
    for spec, name, status in asked:
        to = {"": [], "kept": ["--out", name]}.get(name, ["--save", name])
        job = subprocess.Popen(
            [*command, *to, f"{spec}.shard"],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        jobs.append((job, name, status))
    for job, name, status in jobs:
        assert json.loads(job.stdout.readline())["step"] == 1
        if not name:
            said = job.communicate(timeout=120)[1].decode()
            assert job.returncode == status, said
            assert "error[SH0612]: the batches of some ranks ended before those" in said
            continue
        if name == "pipe":
            job.stdout.close()
            job.wait(120)
        else:
            assert json.loads(job.stdout.readline())["step"] == 2
            job.send_signal(signal.SIGINT if name == "kept" else signal.SIGTERM)
            job.stdout.read()
            job.wait(120)
        said = job.stderr.read().decode()
        assert job.returncode == status, said
        if name == "kept":
            assert json.loads((folder / "kept/run.json").read_text())["state"] == "interrupted"
            continue
        assert "saved the weights after " in said, said
        count = int(said.split("saved the weights after ")[1].split()[0])
        torch.testing.assert_close(saved(folder / name), trained(count))
