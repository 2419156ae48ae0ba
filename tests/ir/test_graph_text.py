"""The text of graphs: printed, parsed back, and what it refuses."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardlang.ir.difference import difference
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.factor import Factor
from shardlang.ir.graph import ShardGraph
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info, layout_of
from shardlang.ir.text import graph_text
from shardlang.passes.graph_text import read_graph
from tests.all_specs import of_files
from tests.graph_text import STATES, states, unlike
from tests.passes.test_fixtures import sections

ROOT = Path(__file__).parents[2]
FIXTURES = sorted((ROOT / "tests" / "fixtures").glob("*/*.txt"))

HEAD = "graph split\nmesh dp = 2 data, tp = 3\n"
LINEAR = HEAD + 'w = param "w" trainable : f32[10@tp, 6]\nx = input "x" : f32[7@dp, 6]\n'


def test_a_graph_is_that_of_its_text_after_every_pass() -> None:
    build = dict(of_files("examples/megatron_mlp"))["examples/megatron_mlp/mlp.shard"]
    for place, (after, graph) in enumerate(states(build)):
        assert unlike(after, graph, long=place % 2 == 0) is None, after


@pytest.mark.parametrize("folder", sorted({path.parent.name for path in FIXTURES}))
def test_a_graph_of_a_fixture_is_that_of_its_text(folder: str) -> None:
    for path in FIXTURES:
        for title, text in sections(path).items():
            if path.parent.name == folder and title in ("before", "after"):
                graph = read_graph(text)
                after = STATES[-1 if "program" in text.split("\n") else 0]
                assert unlike(after, graph, long=False) is None, path


AXES = (Axis("dp", 2), Axis("tp", 3), Axis("ep", 2))
SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=3)
DIMS = st.lists(st.lists(SIZES, min_size=1, max_size=3), max_size=3)


def layout_of_sizes(dims: list[list[list[int]]], places: list[int], partial: set[Axis]) -> Layout:
    """A layout with the given factors, each axis on one of them, or on none and marked."""
    numbers = itertools.count()

    def factor(size: int) -> Factor:
        number = next(numbers)
        return Factor(size, tuple(a for a, at in zip(AXES, places, strict=True) if at == number))

    made = tuple(DimLayout(tuple(tuple(map(factor, block)) for block in dim)) for dim in dims)
    free = {axis for axis, at in zip(AXES, places, strict=True) if at >= next(numbers)}
    return Layout(made, frozenset(free & partial), frozenset(free - partial))


@given(DIMS, st.lists(st.integers(0, 6), min_size=3, max_size=3), st.sets(st.sampled_from(AXES)))
def test_a_layout_is_that_of_its_text(
    dims: list[list[list[int]]], places: list[int], partial: set[Axis]
) -> None:
    layout = layout_of_sizes(dims, places, partial)
    text = f'program\nmesh dp = 2, tp = 3, ep = 2\nx = input "x" : f32{layout}\nreturn'
    graph = read_graph(text)
    (node, leaf), *_ = graph.placeholders()
    assert layout_of(node) == layout == leaf.layout


def test_a_split_that_the_type_does_not_say() -> None:
    text = HEAD + (
        'w = param "w" trainable : f32[5, 6@tp]\nx = input "x" : f32[7@dp, 6@tp]\n'
        "y = linear(x, w) : f32[7@dp, 5] +tp split i: 6@tp\n"
        "z = neg(y) : f32[7@dp, 5] +tp\n"
        'return output "y" z'
    )
    graph = read_graph(text)
    y, z = list(graph.graph.nodes)[2:4]
    tp = graph.mesh["tp"]
    assert info(y).sharding.factors["i"].axes == (tp,)
    assert not info(y).sharding.linear
    assert info(z).sharding.linear == {tp: frozenset({0})}
    assert info(z).differentiable and not info(list(graph.graph.nodes)[1]).differentiable
    assert graph_text(graph) == text


@pytest.mark.parametrize(
    "mine, other, said",
    [
        ("relu(x)", "neg(x)", "`y` is made by: aten.relu.default and aten.neg.default"),
        ("mul.Tensor(x, w)", "mul.Tensor(w, x)", "`y` reads: ['x', 'w'] and ['w', 'x']"),
    ],
)
def test_the_first_difference_is_said(mine: str, other: str, said: str) -> None:
    def graph(call: str) -> ShardGraph:
        leaves = 'w = param "w" : f32[7, 6]\nx = input "x" : f32[7, 6]\n'
        return read_graph(f'{HEAD}{leaves}y = {call} : f32[7, 6]\nreturn output "y" y\n')

    assert difference(graph(mine), graph(other)) == said
    assert difference(graph(mine), graph(mine)) is None


def test_which_notation_of_its_rule_an_op_takes() -> None:
    heads = "".join(f'{name} = input "{name}" : f32[2, 3, 4, 5]\n' for name in "kv")
    text = (
        f'graph split\nmesh tp = 4\nq = input "q" : f32[2, 6@tp, 4, 5]\n{heads}'
        "y = scaled_dot_product_attention(q, k, v, None, 0.0, True, enable_gqa=True)"
        ' : f32[2, 6@tp, 4, 5] notation 1\nreturn output "y" y'
    )
    graph = read_graph(text)
    assert info(list(graph.graph.nodes)[3]).sharding.rule.notation == 1
    assert graph_text(graph) == text


def test_words_of_the_text_may_be_names() -> None:
    words = [
        "size",
        "start",
        "indices",
        "shard",
        "part",
        "route",
        "op",
        "split",
        "to",
        "at",
        "data",
        "none",
        "notation",
    ]
    leaves = "".join(f'{word} = input "{word}" : f32[3]\n' for word in words)
    calls = "".join(f"{word}_1 = neg({word}) : f32[3]\n" for word in words)
    text = f"graph split\nmesh none = 2, by = 3\n{leaves}{calls}return output "
    text += ", output ".join(f'"{word}" {word}_1' for word in words)
    assert graph_text(read_graph(text)) == text


@pytest.mark.parametrize("number", ["1e+16", "-inf", "nan", "(1-2j)", "1e+20j", str(2**63 - 1)])
def test_numbers_are_those_of_python(number: str) -> None:
    text = f'graph\nmesh dp = 2\nx = input "x" : c64[3]\ny = add.Scalar(x, {number}) : c64[3]\n'
    assert f"add.Scalar(x, {number})" in graph_text(read_graph(f'{text}return output "y" y'))


def test_lines_may_end_as_on_windows_and_hold_comments() -> None:
    text = LINEAR + 'y = linear(x, w) : f32[7@dp, 10@tp]\nreturn output "y" y'
    other = "# a graph\r\n" + text.replace("\n", " # note\r\n\r\n")
    assert graph_text(read_graph(other)) == text
