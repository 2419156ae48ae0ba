"""What flows first: layouts that no test of numbers tells apart, since each of them is right."""

from __future__ import annotations

from pathlib import Path

from torch import fx

from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import Compiled
from shardlang.ir.graph import ShardGraph, result_layout
from shardlang.ir.node import layout_of
from shardlang.passes.pipeline import PIPELINE, run_passes
from tests.proof.proving import compiled

MODEL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8)

    def forward(self, x, z):
        return {"h": self.a(x), "sum": self.a(x) + z.tanh()}
"""


def layout(done: Compiled, name: str) -> str:
    """The layout of the last value of an op."""
    return str(layout_of(last(done.graph, name)))


def last(graph: ShardGraph, name: str) -> fx.Node:
    """The last op of a name."""
    return [n for n in graph.graph.nodes if n.op == "call_function" and name in n.name][-1]


def propagated(done: Compiled, name: str) -> str:
    """The layout of the last value of an op, after `propagate`."""
    passes = PIPELINE[: [one.name for one in PIPELINE].index("propagate") + 1]
    graph = run_passes(build_graph(done.captured, done.statements), passes)
    return str(result_layout(last(graph, name)))


DATA = """
mesh { dp = 2 as data }
model "model.py:Net"
input x : f32[5, 6] [_, _]
input z : f32[5, 8] [_, _]
"""


def test_a_parameter_on_a_data_axis_is_used_as_moves_less(tmp_path: Path) -> None:
    """Propagation reads it whole; weighed, `linear` is split as its weight is."""
    done = compiled(tmp_path, MODEL, DATA + 'param "a.weight" [dp, _]')
    assert "@" not in propagated(done, "linear") and "@" not in propagated(done, "add")
    assert "8@dp" in layout(done, "linear")


def test_a_stored_parameter_splits_no_op(tmp_path: Path) -> None:
    """It lies there for storage: `linear` reads it whole, though splitting would move less."""
    done = compiled(tmp_path, MODEL, DATA + 'store "a.weight" over dp')
    (held,) = [leaf for leaf in done.program.leaves if leaf.name == "a.weight"]
    assert str(held.layout.dims[0]) == "8@dp"
    assert "@" not in layout(done, "linear") and "@" not in layout(done, "add")


def test_what_is_carried_goes_before_the_rows_of_a_product(tmp_path: Path) -> None:
    """The sum lies as `z` does, which pointwise ops carry to it, and not as the product's rows.

    Weighed, it lies as the product does: no gradient flows to `z`, which moves only once.
    """
    spec = """
    mesh { dp = 2 }
    model "model.py:Net"
    input x : f32[5, 6] [dp, _]
    input z : f32[5, 8] [_, dp]
    """
    done = compiled(tmp_path, MODEL, spec)
    assert "8@dp" in propagated(done, "add") and "5@dp" not in propagated(done, "add")
    assert "5@dp" in layout(done, "add")


SCALED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8, bias=False)

    def forward(self, x):
        return F.linear(x, 2 * self.a.weight)
"""


def test_what_is_made_of_a_parameter_claims_as_it_does(tmp_path: Path) -> None:
    """The product is split by the weight's rows, and not by those of its input."""
    spec = """
    mesh { tp = 2 }
    model "model.py:Net"
    input x : f32[3, 5, 6] [_, tp, _]
    param "a.weight" [tp, _]
    """
    assert "8@tp" in layout(compiled(tmp_path, SCALED, spec), "linear")
