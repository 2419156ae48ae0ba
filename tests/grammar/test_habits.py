"""What people write by habit gets one finding, at its place, that says how it is written here."""

from __future__ import annotations

import pytest

from shardlang.grammar.parser import make_lark, parse
from shardlang.grammar.syntax_errors import _THINGS, _WORDS

HABITS = {
    'param "a" ["tp", None]': ("1:12", "axes and dims stand without quotes: `tp`"),
    'param "a" [tp, 0]': ("1:16", "or `_` if it is whole"),
    'param "a" [(dp, tp), _]': ("1:12", "written `dp*tp`"),
    'param "a" [dp+tp, _]': ("1:14", "written `dp*tp`"),
    'store "a" over "dp"': ("1:16", "without quotes: `dp`"),
    "param 'a.b' [tp]": ("1:7", 'write `"a.b"`'),
    "param a.weight [tp]": ("1:7", 'put it in quotes: `"a.weight"`'),
    "param layers.{0,1}.*.weight [tp]": ("1:7", '`"layers.{0,1}.*.weight"`'),
    "param **.weight: [tp]": ("1:7", '`"**.weight"`'),
    "value layers.*.out.0 [tp]": ("1:7", '`"layers.*"`'),
    'loss "a"\nparm "a" [tp]': ("2:1", "did you mean `param`"),
    'param "b" [tp]\nParam "a" [tp]\nloss "a"': ("2:1", "did you mean `param`"),
    "mesh = {dp: 2}": ("1:6", "`mesh { NAME = SIZE }`"),
    'loss "a"\nmesh dp=2': ("2:6", "`mesh { NAME = SIZE }`"),
    "input x : torch.float32[2] [_]": ("1:16", "`f32`"),
    'param "a" [tp];': ("1:15", "remove it"),
    "pipeline { stages = 4 }": ("1:10", 'split "MODULES" microbatches COUNT'),
    'pipeline pp {\n  split "a"\n  stages 4\n}': ("3:3", 'split "MODULES" microbatches COUNT'),
    "pipeline pp {\n  schedule 1f1b(=2)\n}": ("2:17", 'split "MODULES" microbatches COUNT'),
    'pipeline pp {\n  split "a"\n  microbatch 4\n}': ("3:3", "did you mean `microbatches`"),
    "precision bf16": ("1:11", "`precision { compute = TYPE }`"),
    "recompute layers.*": ("1:11", '`recompute "MODULES"`'),
    'store optimiser "a" over dp': ("1:7", "did you mean `optimizer`"),
    'store states "a" over dp': ("1:7", '`store "PATTERN" over AXES`'),
    "recompute to 12GB": ("1:14", "sizes are written `512MiB`"),
    "recompute selctive": ("1:11", "did you mean `selective`"),
    "cluster { nodes = 2 }": ("1:11", "`cluster { peak TYPE = NUMBER }`"),
    "cluster { peak = 989e12 }": ("1:16", "`cluster { peak TYPE = NUMBER }`"),
}


@pytest.mark.parametrize("text", HABITS)
def test_one_finding_says_how_it_is_written(text: str) -> None:
    place, help = HABITS[text]
    tree, findings = parse(text, "x.shard")
    assert tree is None
    assert [str(finding.span) for finding in findings] == [f"x.shard:{place}"]
    assert help in (findings[0].help or "")


def test_every_terminal_has_a_word() -> None:
    """No message shows a name that the parser made up."""
    terminals = {terminal.name for terminal in make_lark().terminals}
    assert terminals - {"COMMENT", "WS"} <= {*_THINGS, *_WORDS}
