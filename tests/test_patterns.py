"""Patterns over names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardlang.grammar.patterns import (
    PatternError,
    compile_pattern,
    literal_pattern,
    nearest_to_pattern,
)

NAMES = [
    "",
    "a",
    "a.b",
    "a.b.c",
    "b.c",
    "layers.0.q_proj",
    "layers.1.k_proj",
    "layers.10.q_proj",
    "a{b",
]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*", ["a", "a{b"]),
        ("**", NAMES),
        ("**.c", ["a.b.c", "b.c"]),
        ("a.**", ["a.b", "a.b.c"]),
        ("a.**.c", ["a.b.c"]),
        ("a.**.b", ["a.b"]),
        ("a*", ["a", "a{b"]),
        ("**c", ["a.b.c", "b.c"]),
        ("layers.{0..1}.{q,k}_proj", ["layers.0.q_proj", "layers.1.k_proj"]),
        ("layers.{0,1{0,1}}.*", ["layers.0.q_proj", "layers.10.q_proj"]),
        ("{a,b}.{b,c}", ["a.b", "b.c"]),
        ("a{,.b}", ["a", "a.b"]),
        ("a\\{b", ["a{b"]),
        ("\\*", []),
        ("", [""]),
        ("A", []),
        ("a,b", []),
    ],
)
def test_matches(pattern: str, wanted: list[str]) -> None:
    assert compile_pattern(pattern).select(NAMES) == wanted


@pytest.mark.parametrize(
    ("pattern", "offset"),
    [("{a", 0), ("a}", 1), ("x.{a,{b}", 2), ("{}", 0), ("{3..1}", 0), ("a\\", 1), ("{0..99999}", 0),
     ("{" * 20 + "}" * 20, 16), ("*a" * 9, 16)],
)  # fmt: skip
def test_refused(pattern: str, offset: int) -> None:
    with pytest.raises(PatternError) as fault:
        compile_pattern(pattern)
    assert fault.value.offset == offset


@given(st.text())
def test_a_literal_pattern_matches_its_name_alone(name: str) -> None:
    pattern = literal_pattern(name)
    assert pattern.literal == name
    assert pattern.matches(name)
    assert not pattern.matches(name + "x")


def test_literals() -> None:
    assert compile_pattern("a\\{b").literal == "a{b"
    assert compile_pattern("a.b").literal == "a.b"
    assert compile_pattern("{a,b}").literal is None


def test_nearest_to_a_pattern_compares_endings() -> None:
    names = [f"layers.{i}.attn.{p}_proj.weight" for i in range(40) for p in ("q", "k", "out")]
    assert nearest_to_pattern("**.q_prj.weight", names, 1) == ["layers.0.attn.q_proj.weight"]
    assert nearest_to_pattern("layers.*.atn.out_proj.weight", names, 1) == [
        "layers.0.attn.out_proj.weight"
    ]
    assert nearest_to_pattern("zzz", names) == []
