"""What rows say: the document's keys, names, modules and reasons; and its memory."""

from __future__ import annotations

import json

import pytest

from shardlang.cost.composition import Kind
from shardlang.plan import Plan, plan_document
from shardlang.plan.moments import Moment, Phase
from shardlang.plan.types import CollectiveRow
from tests.plan.plans import FSDP, SP, STACK, TP, plan

TENSOR_KEYS = {
    "name", "kind", "dtype", "global_shape", "layout", "local_shape", "local_bytes",
}  # fmt: skip
ROW_KEYS = {
    "op", "axes", "phase", "module", "tensors", "stage", "count", "bytes", "bound", "reason",
    "starts_after", "waits_before",
}  # fmt: skip


@pytest.mark.parametrize("text", [TP, STACK, FSDP])
def test_the_document_has_its_keys(text: str) -> None:
    document = json.loads(json.dumps(plan_document(plan(text))))
    assert {"mesh", "devices", "tensors", "collectives", "totals", "bound", "memory"} <= set(
        document
    )
    assert all(set(row) >= TENSOR_KEYS for row in document["tensors"])
    assert all(set(row) >= ROW_KEYS for row in document["collectives"])
    assert document["devices"] == 8
    assert document["totals"]["forward"]["all_to_all"] == {"count": 0, "bytes": 0}


def test_tensors() -> None:
    found = plan(TP)
    kinds = [(row.kind, row.name) for row in found.tensors]
    assert kinds == [
        ("param", "up.weight"), ("param", "up.bias"), ("param", "down.weight"),
        ("param", "down.bias"), ("input", "x"), ("value", "up.out"), ("value", "down.out"),
        ("output", "output"),
    ]  # fmt: skip
    assert found.tensor("up.weight").to_json() == {
        "name": "up.weight",
        "kind": "param",
        "dtype": "f32",
        "global_shape": [24, 8],
        "layout": "[24@tp, 8]",
        "local_shape": [6, 8],
        "local_bytes": 6 * 8 * 4,
    }
    assert found.tensor("down.out").type == "f32[4@dp, 12, 8] +tp"


def only(found: Plan, op: str, phase: Phase, axis: str) -> CollectiveRow:
    """The one row of that kind."""
    (row,) = found.select(op, phase, axis)
    return row


def test_reasons_of_sequence_parallelism() -> None:
    found = plan(SP)
    gather = only(found, "all_gather", "forward", "tp")
    assert (gather.module, gather.tensors) == ("up", ("x",))
    assert gather.reason == "`x` is laid out over tp, gathered before use"
    scatter = only(found, "reduce_scatter", "forward", "tp")
    assert (scatter.module, scatter.tensors) == ("down", ("down.out",))
    assert scatter.reason == (
        "row-parallel `linear` leaves a partial sum over tp, `add` takes its part of dim 1"
    )
    back = only(found, "all_gather", "backward", "tp")
    assert (back.module, back.node) == ("down", scatter.node)
    assert "`down.out`" in back.reason


def test_reasons_of_tensor_parallelism() -> None:
    found = plan(STACK)
    rows = found.select("all_reduce", "forward", "tp")
    assert [row.module for row in rows] == [f"layers.{i}.down" for i in range(3)]
    assert {row.reason for row in rows} == {"row-parallel `linear` leaves a partial sum over tp"}
    rows = found.select("all_reduce", "backward", "tp")
    assert [row.module for row in rows] == ["layers.2.up", "layers.1.up"]
    gives = "column-parallel `linear` gives each tp device a summand of the gradient of"
    assert [row.reason for row in rows] == [f"{gives} `layers.{i}.down.out`" for i in (1, 0)]
    row = only(found, "all_reduce", "backward", "dp")
    assert len(row.tensors) == 12
    assert row.reason == "gradients of 12 parameters, whole over dp, used by data split over dp"


def test_reasons_of_storage() -> None:
    found = plan(FSDP)
    gathers = found.select("all_gather", "forward")
    assert [row.module for row in gathers] == [f"layers.{i}" for i in range(3)]
    together = "4 parameters are stored over shard, gathered together before use"
    assert {row.reason for row in gathers} == {together}
    scatters = found.select("reduce_scatter", "backward", "shard")
    assert [row.module for row in scatters] == [f"layers.{i}" for i in (2, 1, 0)]
    summed = "gradients of 4 parameters, summed over shard and split as they are stored"
    assert {row.reason for row in scatters} == {summed}


def test_reasons_of_the_storage_of_one_parameter() -> None:
    found = plan(FSDP.replace("**", "layers.1.up.weight"))
    (gather,) = found.select("all_gather", "forward")
    assert gather.module == "layers.1.up"
    assert gather.reason == "`weight` is stored over shard, gathered before use"
    (scatter,) = found.select("reduce_scatter", "backward", "shard")
    assert scatter.reason == "gradient of `weight`, summed over shard and split as it is stored"


def test_state_is_what_lies_on_a_device() -> None:
    memory = plan(FSDP).memory
    whole = 3 * (24 * 8 + 24 + 8 * 24 + 8) * 4
    assert memory.params_bytes == memory.gradients_bytes == whole // 4
    assert memory.optimizer_bytes == 2 * whole // 4 + 12 * 4
    assert plan(FSDP + "optimizer sgd(lr = 0.1)").memory.optimizer_bytes == 0
    assert (
        plan(FSDP + "optimizer sgd(lr = 0.1, momentum = 0.9)").memory.optimizer_bytes == whole // 4
    )


def handed_over(text: str) -> Moment:
    """What lies there between the forward and the backward."""
    moments = plan(text).memory.moments
    (middle,) = (one for one in moments if one.phase is Phase.FORWARD and not one.node)
    return middle


def test_what_is_gathered_again_is_not_kept() -> None:
    """Five weights: the backward of a sum reads no bias, and the input wants no gradient."""
    text = FSDP.replace("over shard", "over shard regather")
    rows = plan(text).select("all_gather", "backward", "shard")
    assert [len(row.tensors) for row in rows] == [2, 2, 1]
    kept = [handed_over(one).held[Kind.GATHERED] for one in (FSDP, text)]
    assert kept == [5 * 24 * 8 * 4, 0]
    assert sum(row.bytes for row in rows) == kept[0] * 3 // 4


def test_what_is_saved_for_the_backward() -> None:
    """Of every block: its input for `up`, `up`'s result for gelu, gelu's result for `down`.

    The input of the first block, 2 x 12 x 8 on a device, is a leaf. The loss squares the last sum,
    which is an output; it is there with its cotangent.
    """
    whole, split = 2 * 12 * 8 * 4, 2 * 12 * 24 // 4 * 4
    middle = handed_over(STACK)
    assert middle.held[Kind.SAVED] == 3 * 2 * split + 2 * whole
    assert middle.held[Kind.INPUTS] == whole
    assert middle.held[Kind.OUTPUTS] == whole + 2 * 4


def test_the_peak_is_the_sum_of_its_kinds() -> None:
    found = plan(STACK)
    document = json.loads(json.dumps(plan_document(found)))["memory"]
    assert document["peak_bytes"] == sum(document["at_peak"].values()) == found.memory.peak_bytes
    assert document["phase"] in ("forward", "backward")
    assert document["at_peak"]["parameters"] == document["params_bytes"]
    assert document["at_peak"]["optimizer state"] == document["optimizer_bytes"]
