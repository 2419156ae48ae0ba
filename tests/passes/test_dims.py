"""The dimension graph of small programs, edge by edge, and what is read off it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import compile_spec
from shardlang.ir.dims import Dim, DimGraph, OpFactor, Vertex
from shardlang.ir.graph import ShardGraph, sharding_of
from shardlang.passes.pipeline import PIPELINE, run_passes
from shardlang.passes.propagate.align_units import Units
from shardlang.spec import load_spec_text

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        INIT

    def forward(self, x):
        FORWARD
"""
PASSES = {one.name: place for place, one in enumerate(PIPELINE)}


def graph_after(folder: Path, name: str, forward: str, spec: str, init: str = "pass") -> ShardGraph:
    """The graph of a model after a pass."""
    model = MODEL.replace("INIT", init).replace("FORWARD", forward)
    (folder / "model.py").write_text(model)
    found, findings = load_spec_text(
        f'mesh {{ a = 2 }}\nmodel "model.py:Net"\n{spec}\n', str(folder / "case.shard")
    )
    assert found is not None, findings
    compiled = compile_spec(found, passes=())
    graph = build_graph(compiled.captured, compiled.statements)
    return run_passes(graph, PIPELINE[: PASSES[name] + 1])


def named(vertex: Vertex) -> str:
    """`x.0.1` for dim 1 of result 0 of `x`, `linear:i` for a factor of `linear`."""
    if isinstance(vertex, Dim):
        return f"{vertex.op.name}.{vertex.result}.{vertex.dim}"
    return f"{vertex.op.name}:{vertex.name}"


def edges(dims: DimGraph, op: str) -> list[str]:
    """The edges of one op, each with its joints: the slot, the block, what it is, its unit."""
    return sorted(
        f"{named(start)} > {named(end)} "
        + " ".join(f"{j.slot} {j.block} {j.part.value} {j.unit}" for j in data["joints"])
        for start, end, data in dims.net.edges(data=True)
        for end_op in [start.op if isinstance(start, OpFactor) else end.op]
        if end_op.name == op
    )


MATRIX = "input x : f32[6, 4] [_, _]"
"""The statement of an input of two dims."""

JOINED = {
    "a product": ("return x @ x.T", MATRIX, "matmul", [
        "matmul:m > matmul.0.0 None 0 all 1",
        "matmul:n > matmul.0.1 None 0 all 1",
        "numpy_T.0.0 > matmul:k 1 0 all 1",
        "numpy_T.0.1 > matmul:n 1 0 all 1",
        "x.0.0 > matmul:m 0 0 all 1",
        "x.0.1 > matmul:k 0 0 all 1",
    ]),
    "a dim split into digits": ("return x.view(2, 3, 4)", MATRIX, "reshape", [
        "reshape:f0 > reshape.0.0 None 0 all 1",
        "reshape:f1 > reshape.0.1 None 0 all 1",
        "reshape:f2 > reshape.0.2 None 0 all 1",
        "x.0.0 > reshape:f0 0 0 digit 3",
        "x.0.0 > reshape:f1 0 0 digit 1",
        "x.0.1 > reshape:f2 0 0 all 1",
    ]),
    "digits merged into a dim": ("return x.flatten()", MATRIX, "reshape", [
        "reshape:f0 > reshape.0.0 None 0 digit 4",
        "reshape:f1 > reshape.0.0 None 0 digit 1",
        "x.0.0 > reshape:f0 0 0 all 1",
        "x.0.1 > reshape:f1 0 0 all 1",
    ]),
    "packed blocks": ("return x.chunk(2, 1)", MATRIX, "chunk", [
        "chunk:c0 > chunk.0.1 None 0 all 1",
        "chunk:c1 > chunk.1.1 None 0 all 1",
        "chunk:d0 > chunk.0.0 None 0 all 1",
        "chunk:d0 > chunk.1.0 None 0 all 1",
        "x.0.0 > chunk:d0 0 0 all 1",
        "x.0.1 > chunk:c0 0 0 block 1",
        "x.0.1 > chunk:c1 0 1 block 1",
    ]),
    "a value read twice": ("return x * x", "input x : f32[6] [_]", "mul", [
        "mul:d0 > mul.0.0 None 0 all 1",
        "x.0.0 > mul:d0 0 0 all 1 1 0 all 1",
    ]),
}  # fmt: skip
"""What is joined: the model's line, its input, an op, and the edges of the op."""


@pytest.mark.parametrize("case", JOINED)
def test_edges(case: str, tmp_path: Path) -> None:
    forward, spec, op, expected = JOINED[case]
    assert edges(graph_after(tmp_path, "bind_rules", forward, spec).dims, op) == expected


def test_uses_of_one_of_several_results(tmp_path: Path) -> None:
    forward = "a, b = x.chunk(2, 1); return a.relu() - b"
    dims = graph_after(tmp_path, "bind_rules", forward, MATRIX).dims
    (chunk,) = [op for op in dims.operands if op.name == "chunk"]
    uses = [(use.reader.name, use.slot, use.result) for use in dims.uses[chunk]]
    assert uses == [("relu", 0, 0), ("sub", 1, 1)]


UNITS = {
    "return x.relu().view(2, 3, 4)": [3, 1],
    "return x.view(2, 3, 4), x.view(3, 2, 4)": [6, 1],
    "return x.view(1, 6, 4).view(6, 2, 2)": [1, 2],
    "return x.view(1, 6, 4).flatten()": [1, 1],
    "return x.sum(0).view(2, 2)": [1, 2],
}
"""The model's line to the units of the two dims of its input."""


@pytest.mark.parametrize("forward", UNITS)
def test_units(forward: str, tmp_path: Path) -> None:
    """Those of the nearest reshapes; a dim that is a digit of another has no unit of it."""
    graph = graph_after(tmp_path, "bind_rules", forward, MATRIX)
    ((leaf, _),) = graph.placeholders()
    units = Units(graph.dims)
    assert [units.unit(Dim(leaf, 0, dim)) for dim in (0, 1)] == UNITS[forward]


def test_what_is_chosen_flows_on(tmp_path: Path) -> None:
    """An op after one that takes the cheapest way takes its layout before it is priced itself."""
    init = "self.conv = nn.Conv2d(2, 2, 3, padding=1)"
    spec = "input x : f32[1, 2, 8, 4] [_, _, a, _]"
    graph = graph_after(tmp_path, "propagate", "return self.conv(x).relu()", spec, init)
    origins = {op.name: sharding_of(op).origins for op in graph.dims.operands}
    reasons = {name: [o.text for o in found.values()] for name, found in origins.items()}
    assert reasons["conv2d"] == ["cheapest of 1"] and reasons["relu"] == ["flows from"]


def test_the_dims_are_let_go_when_the_ops_change(tmp_path: Path) -> None:
    graph = graph_after(tmp_path, "lower", "return x.softmax(0)", "input x : f32[6] [a]")
    assert graph.joined is None
