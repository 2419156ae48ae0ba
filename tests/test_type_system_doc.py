"""The table of steps in the documentation is the table in the code."""

from __future__ import annotations

import re

from shardlang.ir.steps import ADJOINTS, Move
from tests.commands import ROOT

MOVES = {
    "nothing": Move.NOTHING,
    "all-reduce": Move.ALL_REDUCE,
    "all-gather": Move.ALL_GATHER,
    "reduce-scatter": Move.REDUCE_SCATTER,
    "local slice": Move.SLICE,
    "pad with zeros": Move.PAD,
    "keep on the first device": Move.FIRST,
    "keep on the first device, zero elsewhere": Move.FIRST,
}
ROW = re.compile(r"^\| (\w+) `([SPIR])(?:\(d\))?→([SPIR])(?:\((\w)\))?` \| ([^|]+) \| ([^|]+) \|")


def test_the_table_of_steps() -> None:
    page = (ROOT / "docs" / "type-system.md").read_text()
    rows = [match.groups() for match in map(ROW.match, page.splitlines()) if match]
    written = {
        (before, after): (name, MOVES[forward], MOVES[backward])
        for name, before, after, _, forward, backward in rows
        if before != after or before != "S"
    }
    assert written == ADJOINTS
    assert {name for name, before, after, *_ in rows if before == after} == {
        "all_to_all",
        "permute",
        "dispatch",
        "collect",
    }
