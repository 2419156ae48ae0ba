"""Patterns for parameter names: short, and exact."""

from __future__ import annotations

import pytest

from shardlang.grammar.patterns import compile_pattern
from shardlang.init.names import patterns_for

LAYERS = range(4)
NAMES = [
    f"model.layers.{i}.attn.{part}_proj.{kind}"
    for i in LAYERS for part in "qkvo" for kind in ("weight", "bias")
]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "patterns"),
    [
        ([n for n in NAMES if "q_" in n], ["model.layers.*.attn.q_proj.{weight,bias}"]),
        (
            [n for n in NAMES if "o_" not in n and "weight" in n],
            ["model.layers.*.attn.{q,k,v}_proj.weight"],
        ),
        (
            [n for n in NAMES if "q_proj.w" in n and ".0." not in n],
            ["model.layers.{1..3}.attn.q_proj.weight"],
        ),
        (
            [n for n in NAMES if "q_proj.w" in n and (".0." in n or ".3." in n)],
            ["model.layers.{0,3}.attn.q_proj.weight"],
        ),
        (["lm_head.weight"], ["lm_head.weight"]),
    ],
)
def test_few_patterns_match_exactly(wanted: list[str], patterns: list[str]) -> None:
    found = patterns_for(wanted, NAMES)
    assert found == patterns
    matched = {name for text in found for name in compile_pattern(text).select([*NAMES, *wanted])}
    assert matched == set(wanted)


def test_names_that_no_pattern_sets_apart_stand_alone() -> None:
    names = ["a.0.b.1.w", "a.1.b.0.w"]
    others = ["a.0.b.0.w", "a.1.b.1.w"]
    assert patterns_for(names, others) == names
