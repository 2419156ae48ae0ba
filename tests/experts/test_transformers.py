"""Mixtures of experts of transformers, tokens and experts split over the same axis."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from shardlang.api import Program
from shardlang.compiler.driver import compile_spec
from shardlang.ir.experts.strategies import Strategy
from shardlang.proof.report import TOLERANCE
from shardlang.spec import load_spec_text
from tests.broad import broad, sampled

pytest.importorskip("transformers")

LAYERS = 2
COMMON = {
    "hidden_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 61, "max_position_embeddings": 160, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "output_router_logits": True,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {"model_type": "mixtral", "intermediate_size": 36, "num_local_experts": 5},
    "qwen2_moe": {
        "model_type": "qwen2_moe", "num_experts": 6, "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 20, "intermediate_size": 36,
    },
}  # fmt: skip
SPEC = """
mesh {{ dp = 2 ep = 2 }}
model hf("config.json", task = "causal-lm", mode = "train")
input input_ids, labels : i64[4, {length}] [dp*ep, _]
param "**.experts.*" [{experts}, ...]
"""


def program(
    name: str, folder: Path, top: int, length: int = 7, experts: str = "ep", more: str = ""
) -> Program:
    """A tiny mixture, its batch split over both axes."""
    config = {**COMMON, **MODELS[name], "num_experts_per_tok": top}
    (folder / "config.json").write_text(json.dumps(config))
    text = SPEC.format(length=length, experts=experts) + more
    spec, findings = load_spec_text(text, str(folder / "spec.shard"))
    assert spec is not None, findings
    return Program(compile_spec(spec))


def check(made: Program) -> None:
    """The proof: loss, outputs, and gradients of all parameters, the router's among them."""
    report = made.verify()
    assert report.ok, report.first
    assert report.gradients is not None
    assert max(report.gradients.values()) < TOLERANCE
    assert {"loss", "aux_loss"} <= {result.name for result in made.local.results}
    routers = [name for name in report.gradients if name.endswith("mlp.gate.weight")]
    assert len(routers) == LAYERS
    assert not set(routers) & set(report.unused)


def taken(made: Program) -> list[Strategy]:
    """The way of every layer."""
    return [strategies.taken for strategies in made.local.info.strategies]


@pytest.mark.parametrize(
    ("name", "top"), sampled(itertools.product(MODELS, (1, 2)), (("mixtral", 2),))
)
def test_rows_are_routed(name: str, top: int, tmp_path: Path) -> None:
    made = program(name, tmp_path, top)
    check(made)
    assert taken(made) == [Strategy.ROUTE_ROWS] * LAYERS
    plan = json.loads(json.dumps(made.plan()))
    rows = [row for row in plan["collectives"] if row["op"] == "all_to_all"]
    assert [row["phase"] for row in rows].count("forward") == 2 * LAYERS
    assert [row["phase"] for row in rows].count("backward") == 2 * LAYERS
    tokens = 4 * 7 // 4
    assert {row["bytes"] for row in rows} == {tokens * top * 24 * 4 // 2}
    assert {tuple(row["axes"]) for row in rows} == {("ep",)}
    assert all("equal shares" in row["reason"] for row in rows)
    gathered = [row for row in plan["collectives"] if row["op"] == "all_gather"]
    assert len(gathered) == LAYERS, "the groups of the rows, and nothing else"


@broad
def test_routing_moves_less_than_gathering(tmp_path: Path) -> None:
    routed, stored = (
        program("mixtral", tmp_path, 1, experts=how, more=more).plan()["totals"]
        for how, more in (("ep", ""), ("_", 'store "**.experts.*" over ep'))
    )

    def moved(totals: dict[str, Any], *ops: str) -> int:
        phases = ("forward", "backward")
        return sum(totals[phase][op]["bytes"] for phase in phases for op in ops)

    sent = moved(routed, "all_to_all", "all_gather", "reduce_scatter")
    assert 0 < 10 * sent < moved(stored, "all_gather", "reduce_scatter")


@broad
def test_all_experts_of_every_token_gather_rows(tmp_path: Path) -> None:
    made = program("mixtral", tmp_path, 5)
    check(made)
    assert taken(made) == [Strategy.GATHER_ROWS] * LAYERS
    assert made.plan()["totals"]["forward"]["all_to_all"]["count"] == 0


@broad
def test_many_tokens_gather_experts(tmp_path: Path) -> None:
    made = program("mixtral", tmp_path, 5, length=150)
    assert taken(made) == [Strategy.GATHER_EXPERTS] * LAYERS
    assert made.plan()["totals"]["forward"]["all_to_all"]["count"] == 0


@broad
def test_experts_over_both_axes_of_the_batch(tmp_path: Path) -> None:
    made = program("mixtral", tmp_path, 2, experts="dp*ep")
    check(made)
    assert taken(made) == [Strategy.ROUTE_ROWS] * LAYERS
    rows = [row for row in made.plan()["collectives"] if row["op"] == "all_to_all"]
    assert {tuple(row["axes"]) for row in rows} == {("dp", "ep")}
