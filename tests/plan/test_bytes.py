"""Counts and bytes of collectives against closed formulas."""

from __future__ import annotations

from shardlang.plan.moments import Phase
from shardlang.plan.totals import Total, total_of, totals_of
from shardlang.plan.types import OPS, Plan
from tests.plan.plans import FSDP, SP, STACK, TP, plan

F32 = 4
DP, TP_SIZE = 2, 4
D, F = 8, 24
ACTIVATION = 4 // DP * 12 * D * F32
"""Bytes of `b s d` on one device, split over dp and whole over tp."""

LOCAL_PARAMS = (F // TP_SIZE * D + F // TP_SIZE + D * F // TP_SIZE + D) * F32
"""Bytes of a block's parameters on one device under tensor parallelism."""

WHOLE_PARAMS = (F * D + F + D * F + D) * F32


def all_reduce(size: int, members: int) -> int:
    """Bytes that one device sends in a ring all-reduce."""
    return 2 * size * (members - 1) // members


def gather(size: int, members: int) -> int:
    """Bytes that one device sends in a ring all-gather or reduce-scatter of a tensor of `size`."""
    return size * (members - 1) // members


def sums(found: Plan, phase: Phase, axis: str) -> dict[str, Total]:
    """Totals by op over one axis, of the ops that occur."""
    by_op = {op: total_of(found.select(op, phase, axis)) for op in OPS}
    return {op: total for op, total in by_op.items() if total.count}


def test_tensor_parallel_block() -> None:
    found = plan(TP)
    assert sums(found, "forward", "tp") == {"all_reduce": Total(1, all_reduce(ACTIVATION, 4))}
    assert sums(found, "forward", "dp") == {}
    assert sums(found, "backward", "tp") == {}  # the input needs no gradient
    assert sums(found, "backward", "dp") == {"all_reduce": Total(1, all_reduce(LOCAL_PARAMS, 2))}


def test_sequence_parallel_block() -> None:
    found = plan(SP)
    once = Total(1, gather(ACTIVATION, 4))
    assert sums(found, "forward", "tp") == {"all_gather": once, "reduce_scatter": once}
    assert sums(found, "backward", "tp") == {"all_gather": once}


def test_tensor_parallel_layers_reduce_twice_each() -> None:
    """Megatron's f and g: the first block's input needs no gradient, the loss one more scalar."""
    found = plan(STACK)
    reduce = all_reduce(ACTIVATION, 4)
    assert sums(found, "forward", "tp") == {"all_reduce": Total(3, 3 * reduce)}
    assert sums(found, "backward", "tp") == {"all_reduce": Total(2, 2 * reduce)}
    assert sums(found, "forward", "dp") == {"all_reduce": Total(1, all_reduce(F32, 2))}
    gradients = Total(1, all_reduce(3 * LOCAL_PARAMS, 2))
    assert sums(found, "backward", "dp") == {"all_reduce": gradients}


def test_stored_layers_are_gathered_once_and_their_gradients_scattered() -> None:
    found = plan(FSDP)
    moved = Total(3, 3 * gather(WHOLE_PARAMS, 4))
    assert sums(found, "forward", "shard")["all_gather"] == moved
    assert sums(found, "backward", "shard") == {"reduce_scatter": moved}
    reduced = all_reduce(3 * WHOLE_PARAMS // 4, 2)
    assert sums(found, "backward", "replica") == {"all_reduce": Total(1, reduced)}
    loss = found.select("all_reduce", "forward")
    assert [row.axes for row in loss] == [("replica", "shard")]
    assert loss[0].bytes == all_reduce(F32, 8)


def test_a_dim_that_moves_is_exchanged_and_back() -> None:
    """From sequence-split to feature-split: (n-1)/n of the local tensor, each way."""
    found = plan(
        """
        mesh { tp = 4 }
        model "models.py:stack"(layers = 2)
        input x : f32[4, 12, 8] [_, tp, _]
        value "layers.0".out [_, _, tp]
        """
    )
    local = 4 * 12 * D // 4 * F32
    exchanged = Total(1, local * 3 // 4)
    assert sums(found, "forward", "tp")["all_to_all"] == exchanged
    assert sums(found, "backward", "tp")["all_to_all"] == exchanged


def test_uneven_shards_travel_as_large_as_the_largest() -> None:
    """A dim of 10 over 4 devices is 3, 3, 2, 2: each sends three shards of 3."""
    found = plan(SP.replace("12, 8]", "10, 8]"))
    (row,) = found.select("all_gather", "forward")
    assert row.bytes == 3 * (4 // DP * 3 * D * F32)
    assert found.tensor("x").local_shape == (2, 3, 8)


def test_the_norm_reduces_one_number() -> None:
    found = plan(STACK + "optimizer adamw(lr = 0.001, clip = 1.0)")
    (row,) = found.select(phase=Phase.UPDATE)
    assert (row.op, row.axes, row.count) == ("all_reduce", ("dp", "tp"), 1)
    assert row.bytes == all_reduce(8, 8)
    assert "clipping" in row.reason
    (row,) = plan(STACK).select(phase=Phase.UPDATE)
    assert row.bytes == all_reduce(8, 8) and "finite" in row.reason
    assert plan(TP).select(phase=Phase.UPDATE) == ()


def test_nothing_goes_back_in_eval_mode() -> None:
    found = plan(STACK.replace('stack"()', 'stack"(mode = "eval")'))
    assert found.select(phase=Phase.BACKWARD) == ()
    assert sums(found, "forward", "tp") == sums(plan(STACK), "forward", "tp")
    assert found.memory.gradients_bytes == found.memory.optimizer_bytes == 0
    assert {moment.phase for moment in found.memory.moments} == {Phase.FORWARD}


def test_one_device_sends_nothing() -> None:
    found = plan(STACK.replace("dp = 2 tp = 4", "dp = 1 tp = 1"))
    assert found.collectives == ()


def test_totals_add_up_and_name_every_op() -> None:
    for text in (TP, SP, STACK, FSDP):
        totals = totals_of(plan(text).collectives)
        assert list(totals) == list(tuple(Phase))
        assert all(list(ops) == list(OPS) for ops in totals.values())
        every = [total for ops in totals.values() for total in ops.values()]
        assert sum(every, Total()) == total_of(plan(text).collectives)
