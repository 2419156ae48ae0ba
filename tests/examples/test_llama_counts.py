"""The Llama example: its collectives and bytes are those of the closed formulas, at any batch."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest

from tests.commands import ROOT, document

LAYERS, SEQ, HIDDEN, F32 = 2, 20, 32, 4
BATCHES = (8, 8192)


@functools.cache
def plan_of(name: str, batch: int) -> dict[str, Any]:
    """The plan of an example at a batch size."""
    return document("plan", ROOT / "examples" / "llama" / f"{name}.shard", "--set", f"b={batch}")


def rows(plan: dict[str, Any], phase: str, op: str, axis: str) -> list[dict[str, Any]]:
    """The collectives of one kind over an axis."""
    return [
        row
        for row in plan["collectives"]
        if (row["phase"], row["op"]) == (phase, op) and axis in row["axes"]
    ]


def params(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Parameters by name."""
    return {row["name"]: row for row in plan["tensors"] if row["kind"] == "param"}


def in_layer(found: list[dict[str, Any]], layer: int) -> list[dict[str, Any]]:
    """Those of one layer."""
    return [row for row in found if f"{row['module']}.".startswith(f"model.layers.{layer}.")]


def activation_bytes(batch: int) -> int:
    """The residual stream of one dp device, whole over tp."""
    return batch // 2 * SEQ * HIDDEN * F32


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_tensor_parallel(batch: int, phase: str, layer: int) -> None:
    """Shoeybi et al. (2019), section 3: two all-reduces a layer each way."""
    plan = plan_of("dp_tp", batch)
    reduces = in_layer(rows(plan, phase, "all_reduce", "tp"), layer)
    assert [row["count"] for row in reduces] == [1, 1]
    assert {row["bytes"] for row in reduces} == {2 * activation_bytes(batch) // 2}
    for op in ("all_gather", "reduce_scatter", "all_to_all", "send_recv"):
        assert rows(plan, phase, op, "tp") == []


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_sequence_parallel(batch: int, phase: str, layer: int) -> None:
    """Korthikanti et al. (2022): each all-reduce becomes a reduce-scatter and an all-gather."""
    plan = plan_of("sp", batch)
    for op in ("all_gather", "reduce_scatter"):
        found = in_layer(rows(plan, phase, op, "tp"), layer)
        assert [row["count"] for row in found] == [1, 1]
        assert {row["bytes"] for row in found} == {activation_bytes(batch) // 2}
    assert in_layer(rows(plan, phase, "all_reduce", "tp"), layer) == []


@pytest.mark.parametrize("batch", BATCHES)
def test_sequence_parallel_reduces_only_norm_weights_and_loss_terms(batch: int) -> None:
    plan = plan_of("sp", batch)
    norms = {name for name in params(plan) if "norm" in name}
    (backward,) = rows(plan, "backward", "all_reduce", "tp")
    assert set(backward["tensors"]) == norms
    forward = rows(plan, "forward", "all_reduce", "tp")
    assert {row["module"] for row in forward} == {""}
    assert all(row["bytes"] <= 2 * batch // 2 * SEQ * F32 for row in forward)


@pytest.mark.parametrize("name", ["dp_tp", "sp"])
@pytest.mark.parametrize("batch", BATCHES)
def test_every_gradient_is_reduced_once_over_dp(name: str, batch: int) -> None:
    plan = plan_of(name, batch)
    found = rows(plan, "backward", "all_reduce", "dp")
    moved = [tensor for row in found for tensor in row["tensors"]]
    assert sorted(moved) == sorted(params(plan))
    over_dp = [row for row in found if row["axes"] == ["dp"]]
    local = [params(plan)[tensor]["local_bytes"] for row in over_dp for tensor in row["tensors"]]
    assert sum(row["bytes"] for row in over_dp) == 2 * sum(local) // 2
    forward = rows(plan, "forward", "all_reduce", "dp")
    assert all(row["bytes"] <= 8 for row in forward)
    for op in ("all_gather", "reduce_scatter", "all_to_all", "send_recv"):
        assert rows(plan, "forward", op, "dp") == rows(plan, "backward", op, "dp") == []


@pytest.mark.parametrize("batch", BATCHES)
def test_fsdp(batch: int) -> None:
    """One gather per block forward, one reduce-scatter backward, (n - 1) / n of it each."""
    plan = plan_of("fsdp", batch)
    for phase, op in (("forward", "all_gather"), ("backward", "reduce_scatter")):
        found = rows(plan, phase, op, "fsdp")
        assert len(found) == LAYERS + 1
        assert sorted(name for row in found for name in row["tensors"]) == sorted(params(plan))
        whole = sum(math.prod(row["global_shape"]) * F32 for row in params(plan).values())
        assert sum(row["bytes"] for row in found) == whole * 3 // 4
    assert rows(plan, "backward", "all_gather", "fsdp") == []
    assert rows(plan, "backward", "all_reduce", "fsdp") == []


@pytest.mark.parametrize("name", ["dp_tp", "sp", "fsdp", "fsdp_tp", "gspmd2d"])
def test_the_counts_do_not_depend_on_the_batch(name: str) -> None:
    small, large = (
        [
            (row["phase"], row["op"], row["axes"], row["module"], row["tensors"], row["count"])
            for row in plan_of(name, batch)["collectives"]
        ]
        for batch in BATCHES
    )
    assert small == large
