"""docs/diagnostics.md against the table of codes; every example gives exactly its code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shardlang.bind import ModelNames, bind
from shardlang.cli import execute
from shardlang.grammar.codes import CODES
from shardlang.spec import load_spec_text

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


def words(text: str) -> str:
    return " ".join(text.split())


def test_every_code_has_its_entry() -> None:
    assert list(SECTIONS) == list(CODES)
    for code, (title, explanation) in CODES.items():
        assert SECTIONS[code].startswith(f"### {code}: {title}\n")
        assert words(explanation) in words(SECTIONS[code])


def test_every_code_of_the_front_end_has_an_example() -> None:
    wanted = {code for code in CODES if code < "SH0350"}
    assert wanted <= EXAMPLES.keys()


def given(code: str, folder: Path) -> list[str]:
    """Put the example and its model into a folder; the arguments that its section names."""
    (folder / "spec.shard").write_text(EXAMPLES[code] + "\n", encoding="utf-8")
    (folder / "model.py").write_text(MODEL, encoding="utf-8")
    return re.findall(r"With `(--set) (\w+=\w+)`", SECTIONS[code])


@pytest.mark.parametrize("code", sorted(EXAMPLES.keys() - set(BOUND_ONLY)))
def test_the_example_gives_exactly_its_code(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for pair in given(code, tmp_path) for word in pair]
    options += ["--no-model"] if code < "SH0300" else []
    monkeypatch.chdir(tmp_path)
    status = execute(["check", "spec.shard", "--json", *options])
    findings = json.loads(capsys.readouterr().out)["diagnostics"]
    assert {finding["code"] for finding in findings} == {code}
    assert status == any(finding["severity"] == "error" for finding in findings)
    for finding in findings:
        assert finding["file"]
        in_model_code = "SH0350" <= code < "SH0400"
        assert finding["help"] or finding["severity"] == "note" or in_model_code


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
