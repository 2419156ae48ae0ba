"""Rows sent to their experts: the same numbers as the plain model, and the way that moves least."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import fx

from shardlang.api import Program
from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import compile_spec
from shardlang.cost.paths import NoPath, find_path
from shardlang.ir.dim_layout import DimLayout, RowOrder
from shardlang.ir.experts.strategies import Strategies, Strategy
from shardlang.ir.graph import ShardGraph, sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.reshard import NoChange, Reshard
from shardlang.passes.invariants.invariant import InvariantError, verify
from shardlang.passes.invariants.orders import orders_kept
from shardlang.passes.pipeline import PIPELINE, run_passes
from shardlang.proof.report import TOLERANCE
from shardlang.rules.experts.local_routed import collect, dispatch, routed_mm
from shardlang.spec import Spec, load_spec_text

HERE = Path(__file__).parent
LINE2, LINE3 = "ep = 2 as data", "ep = 3 as data"
GRID = "dp = 2 as data ep = 2 as data"


def spec_of(mesh: str, x: str, split: str, arguments: str) -> Spec:
    """A spec of one layer of experts, split over `split`."""
    bias = ",bias" if "biased = true" in arguments else ""
    text = (
        f'mesh {{ {mesh} }}\nmodel "models.py:experts"({arguments})\ninput x : {x}\n'
        f'param "{{up,down{bias}}}" [{split}, ...]'
    )
    spec, findings = load_spec_text(text, str(HERE / "spec.shard"))
    assert spec is not None, findings
    return spec


def proven(spec: Spec) -> tuple[Program, Strategies]:
    """The program, whose proof holds with a gradient for every parameter, and the way taken."""
    program = Program(compile_spec(spec))
    report = program.verify()
    assert report.ok, report.first
    assert report.unused == [] and report.gradients is not None
    assert len(report.gradients) == report.count
    assert max(report.gradients.values()) < TOLERANCE
    (strategies,) = program.local.info.strategies
    return program, strategies


def calls(plan: dict[str, Any], op: str, phase: str) -> int:
    """How often a collective is called in one phase."""
    count: int = plan["totals"][phase][op]["count"]
    return count


@pytest.mark.parametrize("choice", ["router", "one", "last"])
@pytest.mark.parametrize("top", [1, 2])
def test_empty_full_and_uneven_experts(choice: str, top: int) -> None:
    spec = spec_of(LINE2, "f32[7, 6] [ep, _]", "ep", f'count = 5, top = {top}, choice = "{choice}"')
    program, strategies = proven(spec)
    assert strategies.taken == Strategy.ROUTE_ROWS
    plan = program.plan()
    assert calls(plan, "all_to_all", "forward") == 2
    assert calls(plan, "all_to_all", "backward") == 1, "no gradient flows to the input"


@pytest.mark.parametrize(
    ("mesh", "x", "split"),
    [
        (LINE3, "f32[7, 6] [ep, _]", "ep"),
        (GRID, "f32[7, 6] [dp*ep, _]", "ep"),
        (GRID, "f32[7, 6] [ep*dp, _]", "ep"),
        (GRID, "f32[3, 5, 6] [dp, ep, _]", "ep"),
        (GRID, "f32[3, 5, 6] [ep, dp, _]", "ep"),
        (GRID, "f32[7, 6] [dp*ep, _]", "dp*ep"),
        (GRID, "f32[7, 6] [dp*ep, _]", "ep*dp"),
        (GRID, "f32[3, 5, 6] [ep, dp, _]", "dp*ep"),
        ("ep = 2 as data tp = 2 dp = 2", "f32[9, 6] [ep*dp, _]", "ep"),
    ],
)
def test_meshes(mesh: str, x: str, split: str) -> None:
    _, strategies = proven(spec_of(mesh, x, split, "count = 5, biased = true"))
    assert strategies.taken == Strategy.ROUTE_ROWS


def test_columns_of_the_experts_split_too() -> None:
    text = (
        'mesh { ep = 2 as data tp = 2 }\nmodel "models.py:experts"()\ninput x : f32[7, 6] [ep, _]\n'
        'param "up" [ep, _, tp(2)]\nparam "down" [ep, tp, _]'
    )
    spec, findings = load_spec_text(text, str(HERE / "spec.shard"))
    assert spec is not None, findings
    program, strategies = proven(spec)
    assert strategies.taken == Strategy.ROUTE_ROWS
    assert calls(program.plan(), "all_reduce", "forward") == 2, "of the result, and of the loss"


def test_rows_are_gathered_where_every_token_has_all_experts() -> None:
    program, strategies = proven(spec_of(LINE2, "f32[4, 6] [ep, _]", "ep", "count = 5, top = 5"))
    assert strategies.taken == Strategy.GATHER_ROWS
    order = (Strategy.GATHER_ROWS, Strategy.ROUTE_ROWS, Strategy.GATHER_EXPERTS)
    assert tuple(sorted(order, key=strategies.bytes.__getitem__)) == order
    plan = program.plan()
    assert calls(plan, "all_to_all", "forward") == calls(plan, "all_to_all", "backward") == 0
    assert calls(plan, "reduce_scatter", "forward") == 1


def test_experts_are_gathered_where_rows_are_many() -> None:
    program, strategies = proven(spec_of(LINE2, "f32[90, 6] [ep, _]", "ep", "count = 2, top = 1"))
    assert strategies.taken == Strategy.GATHER_EXPERTS
    assert calls(program.plan(), "all_to_all", "forward") == 0
    assert calls(program.plan(), "reduce_scatter", "backward") == 1


def test_the_price_is_what_the_plan_says() -> None:
    program, strategies = proven(spec_of(LINE2, "f32[8, 6] [ep, _]", "ep", "count = 4, top = 1"))
    assert strategies.taken == Strategy.ROUTE_ROWS
    totals = program.plan()["totals"]
    moved = sum(totals[phase]["all_to_all"]["bytes"] for phase in ("forward", "backward"))
    groups = totals["forward"]["all_gather"]["bytes"]
    assert math.isclose(strategies.bytes[Strategy.ROUTE_ROWS], moved + groups, rel_tol=1e-3)


def with_groups(model: str, rows: int, experts: int) -> Spec:
    """A spec of a model that is told the expert of every row."""
    text = (
        f'mesh {{ {LINE2} }}\nmodel "models.py:{model}"()\ninput x : f32[{rows}, 6] [ep, _]\n'
        f'input groups : i64[{rows}] below {experts} [ep]\nparam "**" [ep, ...]'
    )
    spec, findings = load_spec_text(text, str(HERE / "spec.shard"))
    assert spec is not None, findings
    return spec


def test_rows_that_are_mixed_leave_the_routed_order() -> None:
    program, strategies = proven(with_groups("mixing", 8, 4))
    assert strategies.taken == Strategy.ROUTE_ROWS
    assert calls(program.plan(), "all_to_all", "forward") == 4


@pytest.mark.parametrize("model", ["viewed", "looked"])
def test_views_and_looked_up_matrices_stay_in_routed_order(model: str) -> None:
    program, strategies = proven(with_groups(model, 7, 5))
    assert strategies.taken == Strategy.ROUTE_ROWS
    assert calls(program.plan(), "all_to_all", "forward") == 2


def test_of_two_routers_on_one_path_one_has_its_way() -> None:
    program, strategies = proven(with_groups("crossed", 7, 5))
    assert strategies.taken == Strategy.ROUTE_ROWS
    assert len(strategies.ops) == 2
    assert calls(program.plan(), "reduce_scatter", "backward") == 1


def test_a_table_that_is_only_added_is_gathered() -> None:
    program = Program(compile_spec(with_groups("table", 7, 5)))
    assert program.verify().ok
    assert program.local.info.strategies == []
    assert calls(program.plan(), "all_to_all", "forward") == 0


def test_experts_over_further_axes_are_gathered_with_a_note() -> None:
    spec = spec_of("ep = 2 as data tp = 2", "f32[7, 6] [ep, _]", "ep*tp", "")
    program = Program(compile_spec(spec))
    assert program.verify().ok
    found = [note for note in program.diagnostics if note.code == "SH0407"]
    assert [note.severity for note in found] == ["note", "note"]
    assert "are gathered over `ep`" in found[0].message
    assert "over `ep` alone" in (found[0].help or "")
    assert program.local.info.strategies == []
    assert calls(program.plan(), "all_gather", "forward") == 1


def routed_graph() -> ShardGraph:
    """A layer of experts right after its rows were routed."""
    compiled = compile_spec(spec_of(LINE2, "f32[7, 6] [ep, _]", "ep", ""), passes=())
    graph = build_graph(compiled.captured, compiled.statements)
    end = [one.name for one in PIPELINE].index("route_rows") + 1
    return run_passes(graph, PIPELINE[:end])


def node_of(graph: ShardGraph, target: object) -> fx.Node:
    """The only node of that target."""
    (node,) = (node for node in graph.graph.nodes if node.target is target)
    return node


def test_rows_that_stay_in_routed_order_are_noticed() -> None:
    graph = routed_graph()
    back = node_of(graph, collect)
    back.replace_all_uses_with(back.all_input_nodes[0])
    graph.graph.erase_node(back)
    with pytest.raises(InvariantError, match=r"the rows of .* read as"):
        verify(graph, "route_rows", [orders_kept])


def test_rows_that_were_not_sent_are_noticed() -> None:
    graph = routed_graph()
    sent = node_of(graph, dispatch)
    sent.replace_all_uses_with(sent.all_input_nodes[0])
    graph.graph.erase_node(sent)
    with pytest.raises(InvariantError, match=r"the rows of .* read as"):
        verify(graph, "route_rows", [orders_kept])


def test_rows_sent_twice_are_noticed() -> None:
    graph = routed_graph()
    sent = node_of(graph, dispatch)
    back = node_of(graph, collect)
    back.target = dispatch
    back.args = (back.args[0], back.args[1], sent.args[2])
    with pytest.raises(InvariantError, match="it changes rows by"):
        verify(graph, "route_rows", [orders_kept])


def test_rows_in_the_order_of_other_groups_are_noticed() -> None:
    graph = routed_graph()
    node = next(node for node in graph.graph.nodes if node.target is routed_mm)
    rows = sharding_of(node).factors["s"]
    assert str(rows).startswith("(7@ep 2) by ") and rows.order is not None
    sharding_of(node).factors["s"] = rows.ordered(replace(rows.order, by="others"))
    with pytest.raises(InvariantError, match=r"the rows of .* read as .* by others of "):
        verify(graph, "route_rows", [orders_kept])


def test_only_its_route_moves_rows_that_are_out() -> None:
    axis = Axis("ep", 2)
    rows, groups = (DimLayout.shard(size, (axis,)) for size in (8, 4))
    out = Layout((rows.ordered(RowOrder("groups", groups)),))
    for goal in (Layout((rows,)), Layout.whole((8,))):
        with pytest.raises(NoChange, match="only a route moves rows"):
            Reshard((axis,), out, goal)
        with pytest.raises(NoPath):
            find_path((out,), goal, True)


def test_the_plan_marks_what_is_in_routed_order() -> None:
    program = Program(compile_spec(with_groups("named", 7, 5)))
    rows = {row["name"]: row for row in program.plan()["tensors"] if row["kind"] == "value"}
    assert rows["act.out"]["expected"] is True
    assert rows["act.out"]["local_shape"] == [4, 10]
    text = program.graph()
    assert text.count("expected") >= 2
    assert "dispatch" in text and "collect" in text


def test_experts_that_lie_in_two_ways_are_routed_apart() -> None:
    """The rows of one choice go to the first matrices, come back, and go to the second."""
    text = (
        f'mesh {{ {GRID} }}\nmodel "models.py:experts"(count = 9)\n'
        'input x : f32[5, 4, 6] [dp*ep, _, _]\nparam "up" [ep, ...]\nparam "down" [dp*ep, ...]'
    )
    spec, findings = load_spec_text(text, str(HERE / "spec.shard"))
    assert spec is not None, findings
    program = Program(compile_spec(spec))
    report = program.verify()
    assert report.ok, report.first
    assert report.gradients is not None
    assert max(report.gradients.values()) < TOLERANCE
    first, second = program.local.info.strategies
    assert [axis.name for axis in first.axes] == ["ep"]
    assert [axis.name for axis in second.axes] == ["dp", "ep"]
    assert first.taken == second.taken == Strategy.ROUTE_ROWS
    assert calls(program.plan(), "all_to_all", "forward") == 4
