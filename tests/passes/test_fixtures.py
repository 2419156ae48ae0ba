"""Paired fixtures: a model and a spec, the graph before a pass, and the graph after it.

A case is one text file in `tests/fixtures/<pass>/`, in sections `== model`, `== spec`, `== before`
and `== after`. With `SHARDLANG_UPDATE=1` the last two are written anew; read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.ir.text import graph_text
from shardlang.passes.pipeline import PIPELINE, run_passes
from shardlang.spec import load_spec_text

FIXTURES = Path(__file__).parent.parent / "fixtures"
PASSES = {one.name: place for place, one in enumerate(PIPELINE)}
CASES = sorted(path for name in PASSES for path in (FIXTURES / name).glob("*.txt"))


def read(path: Path) -> dict[str, str]:
    """The sections of a case."""
    sections: dict[str, str] = {}
    for part in path.read_text().split("== ")[1:]:
        title, _, body = part.partition("\n")
        sections[title.strip()] = body.strip("\n")
    return sections


def write(path: Path, sections: dict[str, str]) -> None:
    """The file of a case."""
    path.write_text("\n\n".join(f"== {title}\n{body}" for title, body in sections.items()) + "\n")


def text_after(compiled: Compiled, count: int) -> str:
    """The graph after the first passes, each of which is verified."""
    graph = build_graph(compiled.captured, compiled.placements)
    names = {leaf.node: leaf.name for leaf in graph.leaves}
    return graph_text(run_passes(graph, PIPELINE[:count]).graph, names)


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_pass(path: Path, tmp_path: Path) -> None:
    sections = read(path)
    (tmp_path / "model.py").write_text(sections["model"] + "\n")
    spec, findings = load_spec_text(sections["spec"], str(tmp_path / "case.shard"))
    assert spec is not None, findings
    compiled = compile_spec(spec, passes=())
    place = PASSES[path.parent.name]
    found = {"before": text_after(compiled, place), "after": text_after(compiled, place + 1)}
    if os.environ.get("SHARDLANG_UPDATE"):
        write(path, {**sections, **found})
    assert {key: sections.get(key) for key in found} == found


def test_every_pass_has_a_case() -> None:
    without = [name for name in PASSES if not list((FIXTURES / name).glob("*.txt"))]
    assert not without
