"""The committed table of what the proof has shown, one line for each overload."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shardlang.proof.rules.prove import Proven

PATH = Path(__file__).with_name("proven.md")

_HEAD = """\
# What the proof of the op rules has shown

Written by `python -m shardlang.rules.prove --table`. Samples are distinct calls; splits are the
assignments of one or two mesh axes under which results and gradients were compared; refused are
samples that are rejected by design, because a shape depends on data or on memory order.

| op | samples | splits | failures | refused | rule of one call |
|---|---|---|---|---|---|
"""


def read_table(path: Path = PATH) -> dict[str, Proven]:
    """The table; empty where there is none."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if len(cells) == 6 and cells[1].isdigit():
            samples, splits, failures, refused = (int(cell) for cell in cells[1:5])
            rule = cells[5].strip("`").replace("\\|", "|")
            found[cells[0].strip("`")] = Proven(samples, splits, failures, refused, rule)
    return found


def write_table(news: Mapping[str, Proven], path: Path = PATH) -> None:
    """Put news into the table in the place of what it says of the same overloads."""
    merged = {**read_table(path), **news}
    lines = [_line(name, merged[name]) for name in sorted(merged)]
    path.write_text(_HEAD + "".join(lines))


def _line(name: str, one: Proven) -> str:
    rule = one.rule.replace("|", "\\|")
    numbers = f"{one.samples} | {one.assignments} | {one.failures} | {one.refused}"
    return f"| `{name}` | {numbers} | `{rule}` |\n"
