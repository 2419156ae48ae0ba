"""Every pass alone, on pairs of texts written by hand.

A case is one file in `tests/fixtures/<pass>/`: what it shows as a comment, the graph before the
pass (`== before`), and the graph after it (`== after`) or the finding (`== refused`: code, message
and help, a line each). `== options` gives the pass options. The texts are written by hand from what
the pass promises; nothing writes them from the code.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from shardlang.ir.difference import difference
from shardlang.ir.graph import ShardError, ShardGraph
from shardlang.ir.text import graph_text
from shardlang.passes.errors import PassError
from shardlang.passes.graph_text import read_graph
from shardlang.passes.invariants.invariant import verify
from shardlang.passes.normalize.normalize import NORMALIZE, TRACED
from shardlang.passes.pipeline import BASE, PIPELINE, Pass

FIXTURES = Path(__file__).parent.parent / "fixtures"
PASSES = {one.name: one for one in (*NORMALIZE, *PIPELINE)}
FEWER = {one.name: 2 for one in NORMALIZE}
"""The least number of cases of a pass, where it is not six."""

FROM_MODULES = ("inline_regions", "expand_vmaps")
"""Passes on what no text shows: see `test_from_modules.py`."""
CASES = sorted(FIXTURES.glob("*/*.txt"))


def sections(path: Path) -> dict[str, str]:
    """The sections of a case."""
    found: dict[str, str] = {}
    for part in path.read_text().split("== ")[1:]:
        title, _, body = part.partition("\n")
        found[title.strip()] = body.strip("\n")
    return found


def pass_of(path: Path, options: str) -> Pass:
    """The pass of a case, with its options."""
    pairs = dict(line.split(" = ") for line in options.splitlines())
    return replace(PASSES[path.parent.name], **{k: ast.literal_eval(v) for k, v in pairs.items()})


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_pass(path: Path) -> None:
    case = sections(path)
    one, graph = pass_of(path, case.get("options", "")), read_graph(case["before"])
    if "refused" in case:
        with pytest.raises((ShardError, PassError)) as caught:
            one.run(graph)
        found = caught.value
        assert [found.code, found.message, found.help] == case["refused"].splitlines()
        return
    made = one.run(graph)
    base = TRACED if one in NORMALIZE else BASE
    verify(made, one.name, (*base, *one.establishes))
    wanted = read_graph(case["after"])
    local = one.name == PIPELINE[-1].name
    assert unlike(made, wanted, local) is None, graph_text(made, local=local)


def unlike(made: ShardGraph, wanted: ShardGraph, local: bool) -> str | None:
    """The first difference; recorded layouts are compared where the text has some."""
    if wanted.info.layouts and made.info.layouts != wanted.info.layouts:
        return f"layouts: {made.info.layouts}"
    return difference(made, wanted, local=local)


@pytest.mark.parametrize("name", sorted(PASSES.keys() - set(FROM_MODULES)))
def test_a_pass_has_enough_cases(name: str) -> None:
    assert len(list((FIXTURES / name).glob("*.txt"))) >= FEWER.get(name, 6)


def test_every_case_belongs_to_a_pass() -> None:
    assert {path.parent.name for path in CASES} == PASSES.keys() - set(FROM_MODULES)
