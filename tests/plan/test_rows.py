"""What rows say: the document's keys, names, modules and reasons; memory against autograd."""

from __future__ import annotations

import json

import pytest
import torch

from shardlang.capture import make_inputs
from shardlang.plan import Plan, plan_document
from shardlang.plan.types import CollectiveRow, Phase
from tests.plan.plans import FSDP, SP, STACK, TP, compiled, plan

TENSOR_KEYS = {
    "name", "kind", "dtype", "global_shape", "layout", "local_shape", "local_bytes",
}  # fmt: skip
ROW_KEYS = {
    "op", "axes", "phase", "module", "tensors", "stage", "count", "bytes", "bound", "reason",
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
    assert all(row.reason.startswith("column-parallel `linear` gives each tp") for row in rows)
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
    assert memory.optimizer_bytes == 2 * whole // 4
    assert plan(FSDP + "optimizer sgd(lr = 0.1)").memory.optimizer_bytes == 0
    assert (
        plan(FSDP + "optimizer sgd(lr = 0.1, momentum = 0.9)").memory.optimizer_bytes == whole // 4
    )


def test_what_is_gathered_again_is_not_kept() -> None:
    """Five weights: the backward of a sum reads no bias, and the input wants no gradient."""
    again = plan(FSDP.replace("over shard", "over shard regather"))
    rows = again.select("all_gather", "backward", "shard")
    assert [len(row.tensors) for row in rows] == [2, 2, 1]
    saved = plan(FSDP).memory.activations_bytes - again.memory.activations_bytes
    assert saved == 5 * 24 * 8 * 4
    assert sum(row.bytes for row in rows) == saved * 3 // 4


def test_activations_are_what_autograd_keeps() -> None:
    """On one device the estimate is the storage that the model's own backward holds on to."""
    text = STACK.replace("dp = 2 tp = 4", "dp = 1 tp = 1")
    done = compiled(text)
    model = done.source.build()
    inputs = make_inputs(done.source, done.inputs, 0)
    left_out = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *inputs.values())}
    kept: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in left_out:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        done.source.call(model, inputs)
    measured = sum(x.untyped_storage().nbytes() for x in kept.values())
    assert plan(text).memory.activations_bytes == measured
