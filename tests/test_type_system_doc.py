"""The table of steps in the documentation is the table in the code."""

from __future__ import annotations

import re

from shardlang.ir.collective import Kind
from shardlang.ir.reshard import CHANGES, How
from shardlang.ir.state import State
from tests.commands import ROOT
from tests.moves.rows import example

KINDS = {
    "nothing": Kind.NOTHING,
    "all-reduce": Kind.ALL_REDUCE,
    "all-gather": Kind.ALL_GATHER,
    "reduce-scatter": Kind.REDUCE_SCATTER,
    "local slice": Kind.SLICE,
    "pad with zeros": Kind.PAD,
    "keep on the first device": Kind.FIRST,
    "all-to-all": Kind.ALL_TO_ALL,
    "send and receive": Kind.PERMUTE,
    "send and receive back": Kind.PERMUTE,
    "send what others hold after": Kind.EXCHANGE,
    "send it back": Kind.EXCHANGE,
    "send what others read": Kind.HALO,
    "send it back, added up": Kind.FOLD,
    "rows to their groups": Kind.DISPATCH,
    "rows back": Kind.COLLECT,
    "zeros": Kind.ZERO,
    "keep on the first device, zero elsewhere": Kind.FIRST,
}
HOW = {
    "all_to_all": How.DIM,
    "permute": How.ORDER,
    "exchange": How.EXCHANGE,
    "halo": How.HALO,
    "fold": How.FOLD,
    "dispatch": How.DISPATCH,
    "collect": How.COLLECT,
    "max": How.MAX,
    "min": How.MIN,
}
ROW = re.compile(
    r"^\| (?:all_reduce )?(\w+) `([SPIR])(?:\(\w\))?→([SPIR])(?:\(\w\))?` \| ([^|]+) \| ([^|]+) \|"
)


def test_the_table_of_changes() -> None:
    page = (ROOT / "docs" / "type-system.md").read_text()
    rows = [match.groups() for match in map(ROW.match, page.splitlines()) if match]
    assert len(rows) == len(CHANGES)
    for name, before, after, forward, backward in rows:
        key = State(before), State(after), HOW.get(name, How.STATE)
        made = example(*key)
        assert made.kind == ("all_reduce" if name in ("max", "min") else name)
        assert (made.forward.kind, made.adjoint.kind) == (KINDS[forward], KINDS[backward]), name
        assert key in CHANGES
