"""Findings as text."""

from __future__ import annotations

import io
import json

import pytest

from shardlang.grammar.diagnostics import Label, Span, error, whole_file
from shardlang.grammar.render import (
    Sources,
    render_all,
    render_concise,
    render_full,
    to_json,
    use_color,
)

TEXT = "\n" * 6 + 'param "up.weight"  [tp, tp]\n'
FIRST, AGAIN = Span("mlp.shard", 7, 21, 7, 23), Span("mlp.shard", 7, 25, 7, 27)
FINDING = error(
    "SH0203",
    "axis `tp` shards two dims of `up.weight`",
    AGAIN,
    label="used again here",
    labels=[Label(FIRST, "first used here")],
    notes=["an axis may shard at most one dim of a tensor"],
    help="drop one use, or declare a second axis in `mesh`",
)
SOURCES = Sources({"mlp.shard": TEXT})

FULL = """\
error[SH0203]: axis `tp` shards two dims of `up.weight`
  --> mlp.shard:7:25
   |
 7 | param "up.weight"  [tp, tp]
   |                     --  ^^ used again here
   |                     |
   |                     first used here
   = note: an axis may shard at most one dim of a tensor
   = help: drop one use, or declare a second axis in `mesh`"""


def test_full() -> None:
    assert render_full(FINDING, SOURCES) == FULL


def test_full_with_another_file_and_a_gap() -> None:
    far = Span("mlp.shard", 1, 1, 3, 1)
    other = Span("base.shard", 2, 1, 2, 4)
    finding = error("SH0202", "`x`", AGAIN, labels=[Label(far, "far"), Label(other, "there")])
    sources = Sources({"mlp.shard": TEXT, "base.shard": "\nlet\tx\x1b[31m"})
    assert render_full(finding, sources) == (
        "error[SH0202]: `x`\n"
        "  --> mlp.shard:7:25\n"
        "   |\n"
        " 1 |\n"
        "   | - far\n"
        "...\n"
        ' 7 | param "up.weight"  [tp, tp]\n'
        "   |                         ^^\n"
        "  ::> base.shard:2:1\n"
        "   |\n"
        " 2 | let x\N{REPLACEMENT CHARACTER}[31m\n"
        "   | --- there"
    )


def test_without_the_source() -> None:
    lines = render_full(FINDING, Sources({"mlp.shard": ""})).split("\n")
    assert lines[1] == "  --> mlp.shard:7:25"
    assert lines[2].startswith("   = note")


def test_a_finding_about_no_line_names_the_file_alone() -> None:
    found = error("SH0603", "a rank failed", whole_file("main.shard"), help="restart")
    text = "error[SH0603]: a rank failed\n  --> main.shard\n   = help: restart"
    assert render_full(found, SOURCES) == text
    assert render_concise(found) == "main.shard: error[SH0603]: a rank failed"
    shown = render_all([found], "github", SOURCES)
    assert shown == "::error file=main.shard,title=SH0603::a rank failed%0Ahelp: restart"


def test_concise_and_github() -> None:
    assert render_all([FINDING], "concise", SOURCES) == (
        "mlp.shard:7:25: error[SH0203]: axis `tp` shards two dims of `up.weight`"
    )
    shown = render_all([error("SH0101", "a\nb%", Span("a,b:c", 1, 2, 3, 4))], "github", SOURCES)
    assert (
        shown == "::error file=a%2Cb%3Ac,line=1,col=2,endLine=3,endColumn=4,title=SH0101::a%0Ab%25"
    )


def test_json_is_plain() -> None:
    document = json.loads(json.dumps(to_json(FINDING)))
    assert {key: document[key] for key in ("code", "line", "column", "end_line", "end_column")} == {
        "code": "SH0203", "line": 7, "column": 25, "end_line": 7, "end_column": 27,
    }  # fmt: skip
    assert document["labels"][0]["text"] == "first used here"


def test_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert use_color(Terminal())
    assert not use_color(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_color(Terminal())
    colored = render_full(FINDING, SOURCES, color=True)
    assert "\033[1;31merror[SH0203]\033[0m" in colored
