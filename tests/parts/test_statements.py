"""Parts of an axis, as statements name them: what they mean, and how they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import Compiled
from shardlang.ir.mesh import Axis, Mesh, joined, product
from shardlang.plan import plan_of
from shardlang.plan.expectations import check_expects
from shardlang.proof.prove import verify_compiled
from tests.graph_text import states, unlike
from tests.passes.test_query_heads import MODEL, sent, spec
from tests.proof.proving import compiled

MESH = Mesh((Axis("dp", 2), Axis("tp", 12, "ib")))


def test_an_axis_in_parts_stands_for_all_of_them() -> None:
    mesh = MESH.in_parts({"tp": [2, 6]})
    assert [str(axis) for axis in mesh.axes] == ["dp", "tp:2", "tp/2:3", "tp/6"]
    assert [axis.size for axis in mesh.axes] == [2, 2, 3, 2]
    assert mesh.named(["tp"]) == mesh.axes[1:]
    assert mesh.named(["tp:6"]) == mesh.axes[1:3]
    assert mesh.named(["tp/2", "dp"]) == (*mesh.axes[2:], mesh.axes[0])
    assert mesh.whole == MESH and str(mesh) == str(MESH)
    assert mesh.coord(17) == {"dp": 1, "tp:2": 0, "tp/2:3": 2, "tp/6": 1}
    with pytest.raises(KeyError):
        mesh.named(["tp:3"])


def test_parts_that_follow_one_another_are_joined() -> None:
    dp, first, second, third = MESH.in_parts({"tp": [2, 6]}).axes
    assert product([first, second, third]) == "tp"
    assert product([first, second, dp]) == "tp:6*dp"
    assert product([second, first]) == "tp/2:3*tp:2"
    assert product([first, third]) == "tp:2*tp/6"
    assert joined([dp, second, third])[1] == MESH.axes[1].cut(2, 6)


def attention(tmp_path: Path, mesh: str, query: str, keys: str, more: str = "") -> Compiled:
    text = spec(mesh, 'InAChild"(heads = 6, groups = 3)', query, keys)
    return compiled(tmp_path, MODEL, text + more)


def test_a_part_is_as_an_axis_of_its_own(tmp_path: Path) -> None:
    """3 key heads over 6 devices: what two axes send, in as many calls."""
    two = attention(tmp_path, "kv = 3  g = 2", "kv*g", "kv")
    lines = """
    store "k.weight" over tp/3
    expect {
      all_reduce over tp == 2
      all_reduce over tp:3 == 1
      all_reduce over tp/3 == 2
      layout "q.weight" [tp, _]
      layout "v.weight" [tp:3, _]
      layout "k.weight" [tp:3, tp/3]
      local "k.weight" [2, 4]
    }
    """
    parts = attention(tmp_path, "tp = 6", "tp", "tp:3")
    stored = attention(tmp_path, "tp = 6", "tp", "tp:3", lines)
    assert sent(parts) == sent(two)
    assert verify_compiled(stored).ok and verify_compiled(parts).ok
    assert check_expects(stored.spec, plan_of(stored)) == []
    assert "12@tp" in parts.program.text() and "6@tp:3" in parts.program.text()


CASES = {
    "heads": ("tp = 4", 'InAChild"(heads = 4, groups = 2)', "tp", "tp:2"),
    "minor first": ("tp = 4", 'Attention"(heads = 4, groups = 4)', "tp/2*tp:2", "tp/2*tp:2"),
    "between": ("tp = 8", 'Attention"(heads = 8, groups = 4)', "tp", "tp:4"),
    "a part alone": ("tp = 6", 'Attention"(heads = 5, groups = 5)', "tp/2", "tp/2"),
    "two dims": ("tp = 4", 'Attention"(heads = 2, groups = 2)', "tp:2", "_, tp/2] #"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_proven_and_its_text_is_read_back(tmp_path: Path, name: str) -> None:
    done = compiled(tmp_path, MODEL, spec(*CASES[name]))
    assert verify_compiled(done).ok
    graph = build_graph(done.captured, done.statements)
    for after, state in states(lambda: (graph, done.spec)):
        assert unlike(after, state, long=True) is None, after
