"""Every rule and every gradient type broken on purpose is found by its numbers, and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from shardlang.compiler.driver import compile_spec
from shardlang.ir.graph import ShardGraph, is_reshard, reshard_of
from shardlang.ir.layout import Layout
from shardlang.ir.node import info, set_info, tensor_of
from shardlang.ir.reshard import Reshard
from shardlang.ir.rule import Operand
from shardlang.passes import pipeline
from shardlang.passes.invariants.invariant import Invariant, InvariantError, Verifier
from shardlang.passes.rewrite.type_gradients import TypeGradients
from shardlang.proof.report import Report
from shardlang.proof.verify import verify
from shardlang.rules.op_rule import OpRule
from shardlang.rules.registry import RULES
from shardlang.spec import load_spec_text

aten = torch.ops.aten

MODEL = """
from torch import nn
import torch.nn.functional as F

class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 6)

    def forward(self, x):
        y = self.down(F.gelu(self.up(self.norm(x)))) + x
        return {"loss": y.pow(2).mean(), "y": y}

def build():
    return Mlp()
"""
SPEC = """
mesh { dp = 2 tp = 3 }
model "model.py:build"()
input x : f32[7, 5, 6] [dp, _, _]
param "up.{weight,bias}" [tp, ...]
param "down.weight" [_, tp]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave it to the numbers alone."""
    monkeypatch.setattr(Verifier, "passed", lambda *given: None)


def prove(folder: Path) -> Report:
    spec, findings = load_spec_text(SPEC, str(folder / "mlp.shard"))
    assert spec is not None, findings
    done = compile_spec(spec)
    return verify(done.captured, done.statements, done.source, done.inputs)


def test_unbroken(folder: Path) -> None:
    report = prove(folder)
    assert report.ok and report.first is None
    assert report.count == 6 and not report.unused


@pytest.fixture
def linear() -> Iterator[OpRule]:
    """The rule of linear, put back afterwards."""
    kept = RULES[aten.linear.default]
    yield kept
    RULES[aten.linear.default] = kept


def test_wrong_factor(folder: Path, unchecked: None, linear: OpRule) -> None:
    """The inner factor of the weight taken for one of its own: no reduction is inserted."""
    RULES[aten.linear.default] = dataclasses.replace(linear, spec="b... i, o j, +o? -> b... o")
    report = prove(folder)
    assert not report.ok
    assert report.first is not None and report.first.name.startswith("linear")
    assert report.first.source.startswith("model.py:")


def test_bias_added_by_every_device(
    folder: Path, unchecked: None, linear: OpRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias that is not marked as added is summed over the devices."""
    plain = OpRule.bind

    def unmarked(self: OpRule, call: object, fast: bool = False) -> object:
        rule = plain(self, call, fast)  # type: ignore[arg-type]
        return dataclasses.replace(rule, operands=tuple(Operand(o.dims) for o in rule.operands))

    monkeypatch.setattr(OpRule, "bind", unmarked)
    report = prove(folder)
    assert not report.ok
    assert (
        report.first is not None and report.first.name == "linear_1" and not report.first.backward
    )


def drop_vary(graph: ShardGraph, module: str) -> ShardGraph:
    """Take out one `vary` of an activation."""
    for node in list(graph.graph.nodes):
        if is_reshard(node) and reshard_of(node).kind == "vary" and info(node).module == module:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
            return graph
    raise AssertionError("there is no vary")


@dataclasses.dataclass(frozen=True)
class Sabotage:
    """Runs gradient typing and then spoils it."""

    kind: str
    name: str = "type_gradients"
    establishes: ClassVar[tuple[Invariant, ...]] = TypeGradients.establishes
    retires: ClassVar[tuple[Invariant, ...]] = TypeGradients.retires

    def run(self, graph: ShardGraph) -> ShardGraph:
        graph = TypeGradients().run(graph)
        return drop_vary(graph, "up") if self.kind == "vary" else loss_in_r(graph)


def loss_in_r(graph: ShardGraph) -> ShardGraph:
    """Leave the loss replicated: its all-reduce is summed again in the backward."""
    for node in reversed(list(graph.graph.nodes)):
        scalar = is_reshard(node) and info(node).differentiable and not tensor_of(node).shape
        if scalar and reshard_of(node).kind == "all_reduce":
            reshard = reshard_of(node)
            dst = Layout(reshard.dst.dims, reshard.dst.partial, frozenset(reshard.axes))
            node.args = (node.args[0], Reshard(reshard.axes, reshard.src, dst))
            set_info(node, replace(info(node), layout=dst))
            return graph
    raise AssertionError("the loss is not all-reduced")


def sabotaged(kind: str) -> tuple[object, ...]:
    return tuple(Sabotage(kind) if p.name == "type_gradients" else p for p in pipeline.PIPELINE)


@pytest.mark.parametrize("kind", ["vary", "loss"])
def test_wrong_gradient_types(
    folder: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    spoiled = sabotaged(kind)
    monkeypatch.setattr(
        "shardlang.proof.verify.run_passes", lambda g: pipeline.run_passes(g, spoiled)
    )  # type: ignore[arg-type]
    report = prove(folder)
    assert not report.ok
    assert report.outputs["loss"] < 1e-12, "the forward is right; only gradients are wrong"
    assert report.first is not None and report.first.backward


@pytest.mark.parametrize("kind", ["vary", "loss"])
def test_the_verifier_sees_it_too(folder: Path, kind: str) -> None:
    spec, _ = load_spec_text(SPEC, str(folder / "mlp.shard"))
    assert spec is not None
    with pytest.raises(InvariantError):
        compile_spec(spec, passes=sabotaged(kind))  # type: ignore[arg-type]
