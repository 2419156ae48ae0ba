"""docs/diagnostics.md against the table of codes; every example gives exactly its code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from shardlang.bind import ModelNames, TensorInfo, bind
from shardlang.grammar.codes import CODES
from shardlang.spec import load_spec

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

NAMES = ModelNames(
    params={
        "up.weight": TensorInfo((32, 16), "f32", True),
        "up.bias": TensorInfo((32,), "f32", True),
        "down.weight": TensorInfo((16, 32), "f32", True),
        "scale": TensorInfo((), "f32", True),
    },
    inputs={"x": (8, 16)},
    modules=("", "up", "down", "split"),
    outputs={"loss": (), "logits": (8, 16)},
    values={
        ("up", "out", ""): (8, 32),
        ("down", "out", ""): (8, 16),
        ("split", "out", "0"): (8, 8),
        ("split", "out", "1"): (8, 8),
    },
)


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


@pytest.mark.parametrize("code", sorted(code for code in EXAMPLES if code < "SH0350"))
def test_the_example_gives_exactly_its_code(code: str, tmp_path: Path) -> None:
    spec_path = tmp_path / "spec.shard"
    spec_path.write_text(EXAMPLES[code] + "\n", encoding="utf-8")
    set_ = re.search(r"With `--set (\w+)=(\w+)`", SECTIONS[code])
    spec, findings = load_spec(spec_path, {set_[1]: set_[2]} if set_ else {})
    if spec is not None:
        findings += bind(spec, NAMES)[1]
    assert {finding.code for finding in findings} == {code}
    assert all(finding.span.file for finding in findings)
    assert code == "SH0223" or all(finding.help for finding in findings)


def test_the_names_are_those_of_the_documented_model() -> None:
    scope: dict[str, Any] = {}
    source = re.search(r"```python\n(.*?)```", TEXT, re.S)
    assert source
    exec(source[1], scope)
    model = scope["build"]()
    assert isinstance(model, nn.Module)
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    assert shapes == {name: info.shape for name, info in NAMES.params.items()}
    assert {name for name, _ in model.named_modules()} == set(NAMES.modules)


def test_codes_in_the_sources_are_in_the_table() -> None:
    used: set[str] = set()
    for folder in ("grammar", "passes", "runtime", "shardlang"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= set(re.findall(r'"(SH\d{4})"', path.read_text(encoding="utf-8")))
    assert used <= CODES.keys(), used - CODES.keys()
