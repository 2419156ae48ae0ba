"""`Any` hides mistakes from the type checker: how much of it our own code has may only fall."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("grammar", "passes", "runtime", "shardlang")
LIMIT = 0.3
"""Occurrences of `Any` per 1,000 lines, imports and comments left out."""


def test_any_is_rare() -> None:
    found, lines = 0, 0
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).parts
            if folder == "shardlang" and parts[1] in FOLDERS:
                continue  # a link to one of the others
            text = path.read_text()
            lines += text.count("\n")
            names = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name))
            found += sum(node.id == "Any" for node in names)
    assert lines > 30_000
    assert 1000 * found / lines < LIMIT, f"{found} in {lines} lines"
