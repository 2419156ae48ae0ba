"""docs/language.md: every example parses, is canonical and, where complete, resolves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shardlang.grammar.formatter import format_tree
from shardlang.grammar.parser import parse
from shardlang.grammar.scan import FORMS
from shardlang.passes.schedules.plain import one_f_one_b
from shardlang.spec import load_spec_text

TEXT = (Path(__file__).parent.parent / "docs" / "language.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```shard\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.split("\n")[0])
def test_examples_are_canonical(example: str) -> None:
    tree, findings = parse(example)
    assert tree is not None, findings
    assert format_tree(tree) == example


def test_the_first_example_resolves() -> None:
    spec, findings = load_spec_text(EXAMPLES[0])
    assert spec is not None
    assert findings == []


def test_the_other_examples_resolve_beside_a_mesh_and_a_model(tmp_path: Path) -> None:
    head = 'mesh { pp = 2 dp = 2 tp = 4 ep = 2 } model "m.py:f" '
    (tmp_path / "mine.csv").write_text(one_f_one_b(2, 8).to_csv())
    for example in EXAMPLES[1:]:
        if example.startswith(("use", "mesh")):
            continue
        dims = "" if example.startswith("dims") else "dims { batch = dp vocab = tp }\n"
        spec, findings = load_spec_text(head + dims + example, str(tmp_path / "spec.shard"))
        assert spec is not None, (example, findings)


def test_every_statement_is_described() -> None:
    for word in FORMS:
        assert f"`{word}`" in TEXT
