"""docs/diagnostics.md against the table of codes; every example gives exactly its code."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

import shardlang
from shardlang.bind import ModelNames, bind
from shardlang.cli import execute
from shardlang.grammar.codes import CODES
from shardlang.spec import load_spec_text
from tests.runtime.forking import completed

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
SECTIONS = {
    match[1]: match[0] for match in re.finditer(r"^### (SH\d{4}):.*?(?=^##|\Z)", TEXT, re.M | re.S)
}
EXAMPLES = {
    code: found[1]
    for code, text in SECTIONS.items()
    if (found := re.search(r"```shard\n(.*?)\n```", text, re.S))
}

MODEL = re.search(r"```python\n(.*?)```", TEXT, re.S)[1]  # type: ignore[index]
BOUND_ONLY = ("SH0307", "SH0308")
"""The codes that `check` does not reach, since it traces the model with the declared inputs."""

PROGRAMS = {
    code: found[1]
    for code, text in SECTIONS.items()
    if (found := re.search(r"```python\n(.*?)```", text, re.S))
}
"""What a program does that meets a code which no command reaches."""

SEVERAL_RANKS = ("SH0602", "SH0603")
"""The codes whose commands start processes."""

WITHOUT = (
    "SH0405", "SH0406", "SH0604", "SH0611", "SH0612", "SH0620", "SH0621", "SH0622", "SH0641",
    "SH0642", "SH0643", "SH0644", "SH0645", "SH0409", "SH0410", "SH0244", "SH0665", "SH0666",
    "SH0652", "SH0653", "SH0108", "SH0632",
)  # fmt: skip
"""No spec is known for the first two; others are seen in `tests/runtime`, `loops` and `moves`."""

LLAMA = {
    "model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
CONFIG = {"llama/config.json": json.dumps(LLAMA)}
FILES = {
    "SH0359": {**CONFIG, "llama/pytorch_model.bin": ""},
    "SH0651": CONFIG,
    "SH0605": {"text.txt": "a"},
}
"""What an example needs besides `model.py`."""


def words(text: str) -> str:
    return " ".join(text.split())


def test_every_code_has_its_entry() -> None:
    assert list(SECTIONS) == list(CODES)
    for code, (title, explanation) in CODES.items():
        assert SECTIONS[code].startswith(f"### {code}: {title}\n")
        assert words(explanation) in words(SECTIONS[code])


def test_every_code_has_an_example() -> None:
    assert EXAMPLES.keys() | PROGRAMS.keys() == CODES.keys() - set(WITHOUT)


def given(code: str, folder: Path) -> None:
    """Put the example, its model and what else it needs into a folder."""
    files = {"model.py": MODEL, "spec.shard": EXAMPLES.get(code, "") + "\n", **FILES.get(code, {})}
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def command(code: str) -> tuple[dict[str, str], list[str]]:
    """The environment and the arguments under which an example is found."""
    named = re.search(r"Found by `((?:\w+=\w+ )*)shardlang (.+?)`", SECTIONS[code])
    if named is not None:
        return dict(pair.split("=") for pair in named[1].split()), named[2].split()
    options = re.findall(r"With `(--set) (\w+=\w+)`", SECTIONS[code])
    words = [word for pair in options for word in pair]
    return {}, ["check", "spec.shard", *words, *(["--no-model"] if code < "SH0300" else [])]


@pytest.mark.parametrize("code", sorted(EXAMPLES.keys() - {*BOUND_ONLY, *SEVERAL_RANKS, *PROGRAMS}))
def test_the_example_gives_exactly_its_code(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if code == "SH0607" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    given(code, tmp_path)
    environment, arguments = command(code)
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    status = execute([*arguments, "--json"])
    findings = json.loads(capsys.readouterr().out.splitlines()[-1])["diagnostics"]
    assert {finding["code"] for finding in findings} == {code}
    assert status == any(finding["severity"] == "error" for finding in findings)
    for finding in findings:
        assert finding["file"]
        assert finding["help"] or finding["severity"] == "note"


@pytest.mark.parametrize("code", SEVERAL_RANKS)
def test_the_run_of_several_ranks_gives_exactly_its_code(code: str, tmp_path: Path) -> None:
    given(code, tmp_path)
    arguments = command(code)[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-m", "shardlang", *arguments]
    done = completed(run, environment, timeout=240, cwd=tmp_path)
    assert done.returncode == 1
    assert re.findall(r"^error\[(SH\d{4})\]", done.stderr, re.M) == [code], done.stderr
    assert "= help: " in done.stderr
    assert "--> spec.shard\n" in done.stderr, "it is about no line of the spec"


@pytest.mark.parametrize("code", PROGRAMS)
def test_the_program_meets_exactly_its_code(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(code, tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r".+") as caught:
        exec(PROGRAMS[code], {"shardlang": shardlang, "torch": torch})
    assert getattr(caught.value, "code", None) == code
    assert getattr(caught.value, "help", "")


@pytest.mark.parametrize("code", BOUND_ONLY)
def test_the_example_gives_exactly_its_code_when_bound(code: str) -> None:
    spec, findings = load_spec_text(EXAMPLES[code])
    assert spec is not None, findings
    found = bind(spec, ModelNames(inputs={"x": (8, 16)}))[1]
    assert [finding.code for finding in found] == [code]


def test_codes_in_the_sources_are_in_the_table() -> None:
    used: set[str] = set()
    for folder in ("grammar", "passes", "runtime", "shardlang"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= set(re.findall(r'"(SH\d{4})"', path.read_text(encoding="utf-8")))
    assert used <= CODES.keys(), used - CODES.keys()
