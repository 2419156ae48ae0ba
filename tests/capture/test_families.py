"""Every model family of the zoo: the graph computes what the model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shardlang.capture import Captured, HfSource, capture
from shardlang.ir.node import info
from tests.broad import sampled
from tests.capture.compare import run_both
from tests.zoo import FAMILIES, Family

_seen: dict[str, tuple[HfSource, Captured]] = {}


FEW = [f for f in FAMILIES if f.name in ("bert", "gemma2", "gpt2", "llama", "t5", "vit")]
"""Those that `make test` compares."""


@pytest.fixture(params=sampled(FAMILIES, FEW), ids=lambda f: f.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def traced(family: Family, tmp_path: Path) -> tuple[HfSource, Captured]:
    if family.name not in _seen:
        source = family.source(tmp_path)
        _seen[family.name] = source, capture(source, family.inputs, lambda name: True)
    return _seen[family.name]


def test_graph_equals_eager(family: Family, traced: tuple[HfSource, Captured]) -> None:
    """Results and all gradients agree in train mode, dropout included."""
    source, captured = traced
    assert run_both(source, captured, family.inputs).error() < 1e-6


def test_graph_equals_eager_in_float64(family: Family, traced: tuple[HfSource, Captured]) -> None:
    """With internal casts raised on both sides, what is left is rounding in float64."""
    source, captured = traced
    runs = run_both(source, captured, family.inputs, double=True)
    assert runs.graph[0].dtype is torch.float64
    assert runs.error() < 1e-12


def test_nodes_know_their_origin(family: Family, traced: tuple[HfSource, Captured]) -> None:
    """Every operator has a source line and a module that exists."""
    _, captured = traced
    calls = [n for n in captured.graph.nodes if n.op == "call_function"]
    assert all(info(n).source.count(".py:") == 1 for n in calls)
    assert {info(n).module for n in calls} <= {"", *captured.modules}
    assert all(info(n).value is not None for n in captured.graph.nodes)


def test_leaves_are_the_models_own(family: Family, traced: tuple[HfSource, Captured]) -> None:
    """Parameters appear once each under their own names, in order, ties as aliases."""
    source, captured = traced
    module = source.deferred.module
    names = [leaf.name for leaf in captured.leaves if leaf.kind == "param"]
    assert names == [name for name, _ in module.named_parameters()]
    every = {
        n for leaf in captured.leaves if leaf.kind == "param" for n in (leaf.name, *leaf.aliases)
    }
    assert every == {name for name, _ in module.named_parameters(remove_duplicate=False)}
    nodes = captured.graph.find_nodes(op="placeholder")
    assert [leaf.node for leaf in captured.leaves] == [node.name for node in nodes]


def test_construction_is_recorded(family: Family, traced: tuple[HfSource, Captured]) -> None:
    """No family needs its whole model in memory."""
    source, _ = traced
    assert source.deferred.recorded, source.deferred.reason


def test_blocks_have_values(family: Family, traced: tuple[HfSource, Captured]) -> None:
    """The output of a block is the input of the next one."""
    _, captured = traced
    chains = {
        "bert": ("bert.encoder.layer.0", "bert.encoder.layer.1"),
        "roberta": ("roberta.encoder.layer.0", "roberta.encoder.layer.1"),
        "gpt2": ("transformer.h.0", "transformer.h.1"),
        "gpt_neox": ("gpt_neox.layers.0", "gpt_neox.layers.1"),
        "opt": ("model.decoder.layers.0", "model.decoder.layers.1"),
        "vit": ("vit.layers.0", "vit.layers.1"),
        "t5": ("encoder.block.0", "encoder.block.1"),
    }
    first, second = chains.get(family.name, ("model.layers.0", "model.layers.1"))
    out = captured.selectors(first, "out")
    assert out, captured.modules
    given = captured.selectors(second, "in")
    node = captured.value(first, "out", out[0])
    assert node is captured.value(second, "in", given[0])
    assert info(node).module.startswith(first)
