"""The command line: exit statuses, streams, documents; fmt, check and explain."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

import shardlang.cli
from shardlang.cli import execute as run
from shardlang.grammar.codes import CODES

GOOD = 'mesh { dp = 2 }\nlet b = 8\nmodel "m.py:f"\ninput x : f32[b, 4] [dp, _]\n'
BAD = 'mesh { dp = 2 }\nmodel "m.py:f"\ninput x : f32[8, 4] [dpp, dp, _]\nloss "{"\n'
WARNS = GOOD + "let unused = 3\n"
MODEL = """
import torch
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(4, 8)
    def forward(self, x):
        return self.up(x).sum()
def f():
    return Model()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("RANK", raising=False)
    texts = {"good": GOOD, "bad": BAD, "warns": WARNS}
    for name, text in texts.items():
        (tmp_path / f"{name}.shard").write_text(text, encoding="utf-8")
    (tmp_path / "m.py").write_text(MODEL, encoding="utf-8")
    return tmp_path


def test_check_prints_findings_on_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--no-model", "bad.shard", "--output-format", "concise"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "bad.shard:3:22: error[SH0205]: unknown axis or dim `dpp`",
        "bad.shard:4:7: error[SH0110]: malformed pattern: `{` is never closed",
    ]
    assert err == ""


def test_check_of_a_clean_spec(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--no-model", "good.shard"]) == 0
    assert capsys.readouterr() == ("", "good.shard: no errors\n")


def test_documents_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--no-model", "good.shard", "--json", "--set", "b=16"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"schema": 1, "spec": "good.shard", "set": {"b": 16}, "ok": True}
    assert (out.count("\n"), err) == (1, "")
    assert run(["check", "--no-model", "bad.shard", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert [found["code"] for found in document["diagnostics"]] == ["SH0205", "SH0110"]
    keys = {
        "code",
        "severity",
        "message",
        "file",
        "line",
        "column",
        "end_line",
        "end_column",
        "help",
    }
    assert keys <= document["diagnostics"][0].keys()


def test_denied_warnings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--no-model", "warns.shard"]) == 0
    assert "warning[SH0230]" in capsys.readouterr().out
    assert run(["check", "--no-model", "warns.shard", "--deny", "warnings"]) == 1
    assert "error[SH0230]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["chek"], "Did you mean 'check'?"),
        (["check"], "Missing argument"),
        (["check", "good.shard", "--set", "b"], "not NAME=VALUE"),
        (["explain", "SH9999"], "no diagnostic SH9999"),
        (["explain", "SH0203", "--set", "b=1"], "a code has no spec to change"),
        (["fmt", "--check", "good.shard", "--set", "b=1"], "No such option '--set'"),
        (["check", "--output-format", "xml", "good.shard"], "xml"),
    ],
)
def test_wrong_usage(
    args: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert out == ""


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (EOFError("cut short"), 2, "internal error: EOFError: cut short"),
        (ZeroDivisionError("oh"), 2, "internal error: ZeroDivisionError: oh"),
        (click.exceptions.Exit(7), 7, ""),
    ],
)
def test_exit_statuses(
    fault: BaseException, status: int, words: str, folder: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr("shardlang.cli.common.Context.load_spec", fail)
    assert run(["check", "good.shard"]) == status
    assert words in capsys.readouterr().err


def test_an_exception_with_a_code_is_a_finding(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class CodedError(ValueError):
        code, message, help, source = "SH0350", "no such model", "write one", "m.py:3"

    def fail(*_: object) -> None:
        raise CodedError

    monkeypatch.setattr("shardlang.cli.common.Context.load_spec", fail)
    assert run(["check", "good.shard"]) == 1
    assert "error[SH0350]: no such model" in capsys.readouterr().out


def test_other_ranks_are_silent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(["check", "--no-model", "bad.shard"]) == 1
    assert capsys.readouterr() == ("", "")


def test_check_with_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GOOD.replace("let b = 8\n", "").replace("b,", "8,") + 'param "up.wieght" [_, _]\n'
    (folder / "model.shard").write_text(text, encoding="utf-8")
    assert run(["check", "model.shard", "--output-format", "concise"]) == 1
    assert "SH0301" in capsys.readouterr().out
    good = text.replace("wieght", "weight") + "expect { forbid all_reduce }\n"
    (folder / "model.shard").write_text(good, encoding="utf-8")
    assert run(["check", "model.shard", "--output-format", "concise"]) == 1
    assert "SH0502" in capsys.readouterr().out
    (folder / "model.shard").write_text(good.replace("all_reduce", "all_to_all"), encoding="utf-8")
    assert run(["check", "model.shard"]) == 0


def test_fmt_rewrites(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fmt", "--check", "good.shard"]) == 1
    assert capsys.readouterr().out == "would reformat good.shard\n"
    assert run(["fmt", "--diff", "good.shard"]) == 0
    assert "+  dp = 2" in capsys.readouterr().out
    assert (folder / "good.shard").read_text() == GOOD
    assert run(["fmt", "good.shard"]) == 0
    assert (folder / "good.shard").read_text().startswith("mesh {\n  dp = 2\n}\n")
    assert run(["fmt", "--check", "good.shard"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "bad.shard", "good.shard", "m.py", "warns.shard",
    ]  # fmt: skip


def test_fmt_of_a_folder_and_of_errors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.shard").write_text("parm", encoding="utf-8")
    assert run(["fmt", "."]) == 1
    _out, err = capsys.readouterr()
    assert "bad.shard:1:1" in err
    assert (folder / "good.shard").read_text() != GOOD
    assert run(["fmt", "missing.shard"]) == 1
    assert run(["fmt", "--check", "good.shard", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["changed"] == []


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "sh0203"]) == 0
    assert capsys.readouterr().out.startswith("SH0203: axis shards two dims\n")
    for code in CODES:
        assert run(["explain", code, "--json"]) == 0


def test_the_module_runs_and_starts_without_torch() -> None:
    code = (
        "import sys; from shardlang.cli import execute; status = execute(['--help']);"
        "assert 'torch' not in sys.modules and 'lark' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("fmt", "check", "explain"):
        assert f"  {name}" in done.stdout
    version = [sys.executable, "-m", "shardlang", "--version"]
    assert subprocess.run(version, capture_output=True, text=True, check=True).stdout.startswith(
        "shardlang "
    )


def test_stdin_is_formatted_to_stdout() -> None:
    command = [sys.executable, "-m", "shardlang", "fmt", "-"]
    done = subprocess.run(command, input="let x=3", capture_output=True, text=True, check=True)
    assert done.stdout == "let x = 3\n"


def test_every_command_has_a_summary() -> None:
    assert all(summary.endswith(".") for summary in shardlang.cli.COMMANDS.values())
