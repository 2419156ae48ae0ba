"""Every model family, from a spec of at most 15 lines, on dp 2 x tp 2 and on fsdp 4."""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import captures
from tests.broad import sampled
from tests.commands import document

HERE = Path(__file__).parent
FAMILIES = sorted(path.parent.name for path in HERE.glob("*/config.json"))
SPECS = [f"{family}/{kind}" for family in FAMILIES for kind in ("tp", "fsdp")]
LAYER = re.compile(r"^(.*\.(?:layers|layer|h))\.(\d+)(?:\.|$)")
PARALLEL_RESIDUAL = {"gpt_neox"}
"""Families whose attention and MLP read one input and are summed: one all-reduce for both."""
PADDING_MASK = {"bert", "roberta"}
"""Families whose specs have a padding mask as an input."""
QUICK = ("bert/tp", "gemma2/fsdp", "gpt2/tp", "gpt_neox/tp", "llama/fsdp", "phi3/tp", "vit/fsdp")
"""Specs that `make test` proves."""

FEW = ("bert", "gemma2", "gpt2", "gpt_neox", "llama", "phi3", "vit")
"""Families whose collectives `make test` counts."""


@functools.cache
def plan_of(spec: str) -> dict[str, Any]:
    """The plan document of a spec, made once."""
    return document("plan", HERE / f"{spec}.shard")


def test_all_families_are_here() -> None:
    assert FAMILIES == [
        "bert", "gemma2", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3",
        "roberta", "vit",
    ]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_the_spec_is_short(spec: str) -> None:
    lines = [line for line in (HERE / f"{spec}.shard").read_text().splitlines() if line.strip()]
    assert len(lines) <= 15


@pytest.mark.parametrize("spec", sampled(SPECS, QUICK))
def test_it_computes_the_same(spec: str) -> None:
    with captures.programs():
        found = document("verify", HERE / f"{spec}.shard")
        plan_of(spec)
    assert found["ok"]
    assert found["devices"] == 4
    assert found["loss"]["error"] < 1e-9
    assert found["outputs"]["max_error"] < 1e-9
    assert found["gradients"]["max_error"] < 1e-9
    assert found["gradients"]["count"] > 10


@pytest.mark.parametrize("family", sampled(FAMILIES, FEW))
def test_every_matrix_of_a_layer_is_split(family: str) -> None:
    plan = plan_of(f"{family}/tp")
    matrices = [
        row
        for row in plan["tensors"]
        if row["kind"] == "param" and LAYER.match(row["name"]) and len(row["global_shape"]) == 2
    ]
    assert matrices
    whole = [row["name"] for row in matrices if row["local_shape"] == row["global_shape"]]
    assert whole == []


@pytest.mark.parametrize("family", sampled(FAMILIES, FEW))
def test_collectives_per_layer_equal_those_of_megatron(family: str) -> None:
    """Two all-reduces forward and two backward over tp; one each with a parallel residual."""
    each = 1 if family in PARALLEL_RESIDUAL else 2
    wanted = {("all_reduce", f"layer {i}"): each for i in (0, 1)}
    for phase in ("forward", "backward"):
        found = moved_over_tp(family, phase)
        assert {key: n for key, n in found.items() if "layer" in key[1]} == wanted


def moved_over_tp(family: str, phase: str) -> Counter[tuple[str, str]]:
    """Collectives over tp of one phase that move activations, by op and place."""
    plan = plan_of(f"{family}/tp")
    params = {row["name"] for row in plan["tensors"] if row["kind"] == "param"}
    found: Counter[tuple[str, str]] = Counter()
    for row in plan["collectives"]:
        if row["phase"] == phase and "tp" in row["axes"] and not set(row["tensors"]) <= params:
            found[row["op"], place(row["module"])] += row["count"]
    return found


def place(module: str) -> str:
    """`layer 1`, or `elsewhere`."""
    layer = LAYER.match(module)
    return f"layer {layer.group(2)}" if layer else "elsewhere"


@pytest.mark.parametrize("family", sampled(FAMILIES, FEW))
def test_fsdp_gathers_once_and_reduces_once(family: str) -> None:
    plan = plan_of(f"{family}/fsdp")
    stored = sorted(
        row["name"]
        for row in plan["tensors"]
        if row["kind"] == "param" and row["local_shape"] != row["global_shape"]
    )
    assert stored
    gathered = moved(plan, "forward", "all_gather")
    others = [name for name in gathered if name not in stored]
    assert len(others) == (family in PADDING_MASK)  # the mask, looked up by batch index
    assert [name for name in gathered if name in stored] == stored
    assert moved(plan, "backward", "reduce_scatter") == stored
    assert moved(plan, "backward", "all_gather") == []


def moved(plan: dict[str, Any], phase: str, op: str) -> list[str]:
    """The tensors that the collectives of one kind move, whether coalesced or not."""
    rows = [row for row in plan["collectives"] if (row["phase"], row["op"]) == (phase, op)]
    return sorted(name for row in rows for name in row["tensors"])
