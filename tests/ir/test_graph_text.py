"""The text of graphs: printed, parsed back, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import compile_spec
from shardlang.ir.difference import difference
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.factor import Factor
from shardlang.ir.graph import ShardGraph
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info, layout_of
from shardlang.ir.program import LocalProgram
from shardlang.ir.text import graph_text
from shardlang.passes.graph_text import GraphTextError, read_graph
from shardlang.passes.pipeline import PIPELINE
from shardlang.passes.rewrite.localize import to_program
from shardlang.spec import load_spec

ROOT = Path(__file__).parent.parent.parent
SAMPLE = (
    "examples/megatron_mlp/mlp.shard",
    "examples/moe/routed.shard",
    "examples/gpt2/fast.shard",
)
"""Specs that together have every kind of node, argument and layout."""
ROUTED = ("route_rows", "type_gradients", "localize")
"""Passes after which the text of a large graph with routes is read back."""

HEAD = "graph split\nmesh dp = 2 data, tp = 3\n"
LINEAR = HEAD + 'w = param "w" trainable : f32[10@tp, 6]\nx = input "x" : f32[7@dp, 6]\n'


def states(path: Path) -> Iterator[tuple[str, ShardGraph]]:
    """The graph of a spec after every pass; one graph, changed between them."""
    spec, findings = load_spec(path)
    assert spec is not None, findings
    compiled = compile_spec(spec, passes=())
    graph = build_graph(compiled.captured, compiled.statements)
    yield "normalize", graph
    for one in PIPELINE:
        graph = one.run(graph)
        yield one.name, graph


@pytest.mark.parametrize("name", SAMPLE)
def test_a_graph_is_that_of_its_text(name: str) -> None:
    for place, (after, graph) in enumerate(states(ROOT / name)):
        if "moe" in name and after not in ROUTED:
            continue
        local, long = after == PIPELINE[-1].name, place % 2 == 0
        text = graph_text(graph, local=local, long=long)
        made = read_graph(text)
        assert difference(graph, made, local=local, long=long) is None, after
        assert graph_text(made, local=local, long=long) == text, after
    program = to_program(graph)
    assert same_program(to_program(read_graph(program.text())), program)


def same_program(made: LocalProgram, program: LocalProgram) -> bool:
    """Whether two programs have the same leaves, results and fingerprint."""
    return (
        made.leaves == program.leaves
        and made.results == program.results
        and made.fingerprint() == program.fingerprint()
    )


AXES = (Axis("dp", 2), Axis("tp", 3), Axis("ep", 2))
FACTORS = st.builds(
    Factor, st.integers(1, 12), st.sampled_from([(), AXES[:1], AXES[1:2], AXES[::2]])
)
DIMS = st.lists(st.lists(FACTORS, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(
    lambda blocks: DimLayout(tuple(blocks))
)


@settings(deadline=None)
@given(st.lists(DIMS, max_size=3), st.sets(st.sampled_from(AXES)))
def test_a_layout_is_that_of_its_text(dims: list[DimLayout], marks: set[Axis]) -> None:
    partial = frozenset(marks)
    layout = Layout(tuple(dims), partial, frozenset(AXES) - partial)
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
    "rest, said",
    [
        ("y = linear(x, v) : f32[7@dp, 10@tp]", "line 5: no node above is called `v`"),
        ("y = linear(x, w) : f32[7@dp, 10@ep]", "line 5: the mesh has no axis `ep`"),
        ("y = linaer(x, w) : f32[7@dp, 10@tp]", "line 5: there is no op `linaer`"),
        ("y = linear(x, w) : f31[7@dp, 10@tp]", "line 5: no dtype is called `f31`"),
        ("y = linear(x, w) : f32[7@dp, 10@tp] +tp",
         "line 5: `y` is split into [7@dp, 10@tp], not as its type says"),
        ("y = all_gather[tp](w) : f32[10@tp, 6]",
         "line 5: `all_gather` is a change by permute: permute[tp] [10@tp, 6] -> [10@tp, 6]"),
        ("y = all_reduce[dp](w) : f32[10@tp, 6]",
         "line 5: no reshard leads from I to I over `dp`: [10@tp, 6] -> [10@tp, 6]"),
        ("w = neg(x) : f32[7@dp, 6]", "line 5: two nodes are called `w`"),
        ("y = neg(x) ; f32[7@dp, 6]", "line 5: cannot be read: y = neg(x) ; f32[7@dp, 6]"),
        ("y = rules.local:max(x) : f32[7@dp, 6]",
         "line 5: there is no function `rules.local:max`"),
        ('y = neg(x) : f32[7@dp, 6] because dp "guessed" "x"', "line 5: `guessed` is no reason"),
    ],
)  # fmt: skip
def test_text_that_is_no_graph(rest: str, said: str) -> None:
    with pytest.raises(GraphTextError) as caught:
        read_graph(f'{LINEAR}{rest}\nreturn output "y" x\n')
    assert str(caught.value) == said


def test_a_rule_that_does_not_fit_is_refused() -> None:
    text = LINEAR.replace("f32[10@tp, 6]", "f32[10@tp, 5]")
    with pytest.raises(ValueError, match="does not fit"):
        read_graph(f'{text}y = linear(x, w) : f32[7@dp, 10@tp]\nreturn output "y" y\n')


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
