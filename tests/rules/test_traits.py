"""Traits that an op does not have are found; `test_prove.py` compares those of all rules with the
ops."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from shardlang.ir.compat import OpOverload
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.mesh import Axis
from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.check import Case
from shardlang.proof.rules.own import below, numbers, own_calls
from shardlang.proof.rules.traits import wrong_traits
from shardlang.rules.local_shape import place
from shardlang.rules.registry import RULES
from shardlang.rules.zeros import maps_zeros

aten: Any = torch.ops.aten
X = numbers(5, 7)


def found_in(call: AtenCall) -> list[str]:
    """What is wrong with the traits of a call."""
    return list(wrong_traits(call, Case(call).node()))


EXPERTS = AtenCall(
    torch.ops.shardlang.grouped_mm.default,
    (numbers(7, 6), numbers(5, 6, 4), torch.tensor([2, 0, 4, 2, 2, 0, 4])),
    {},
)


def _masked(x: Tensor, weight: Tensor, groups: Tensor, at: int) -> Tensor:
    """Products of all rows, and zeros times those of other devices."""
    held = (groups >= at) & (groups < at + len(weight))
    made = torch.einsum("si,sio->so", x, weight[(groups - at).clamp(0, len(weight) - 1)])
    return made * held[:, None]


def _wrapped(weight: Tensor, indices: Tensor) -> Tensor:
    """Rows of a device's shard of a table, and no zeros."""
    return weight[indices % len(weight)]


WRONG: dict[str, tuple[AtenCall, dict[str, Any], str]] = {
    "a view without its trait": (
        AtenCall(aten.transpose.int, (X, 0, 1), {}),
        {"view": False},
        "lies in the memory of operand 0, not None",
    ),
    "a copy that is not a view": (
        AtenCall(aten.clone.default, (X,), {}),
        {"view": True},
        "lies in the memory of operand None, not 0",
    ),
    "an op that computes does not move": (
        AtenCall(aten.neg.default, (X,), {}),
        {"moves": True},
        "holds other elements than the first operand",
    ),
    "softmax reads its result": (
        AtenCall(aten.softmax.int, (X, 1), {}),
        {"keeps": "self"},
        "reads operands [] and results [0], not ([0], [])",
    ),
    "a product reads its other operand": (
        AtenCall(aten.mul.Tensor, (X, 2 * X), {}),
        {"keeps": "self"},
        "reads operands [0, 1] and results [], not ([0], [])",
    ),
    "a product whose matrices are not what it picks": (
        EXPERTS,
        {"picks": "i groups"},
        "has more than zeros in rows that pick from other devices",
    ),
    "a product that reads the rows of other devices": (
        EXPERTS,
        {
            "localize": lambda call, sharding: (
                _masked,
                (*call.operands, place(sharding.factors["e"])),
                {},
            )
        },
        "has more than zeros in rows that pick from other devices",
    ),
    "a look-up of any row where its own is elsewhere": (
        AtenCall(aten.embedding.default, (numbers(11, 6), below(11, 4, 5)), {}),
        {"localize": lambda call, sharding: (_wrapped, (call["weight"], call["indices"]), {})},
        "has more than zeros in rows that pick from other devices",
    ),
    "a draw": (
        AtenCall(aten.native_dropout.default, (X, 0.4, True), {}),
        {"random": False},
        "draws random numbers",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_traits_are_found(name: str) -> None:
    call, change, reason = WRONG[name]
    kept = RULES[call.target]
    assert found_in(call) == []
    RULES[call.target] = dataclasses.replace(kept, **change)
    try:
        assert [wrong for wrong in found_in(call) if reason in wrong]
    finally:
        RULES[call.target] = kept


ZEROS: list[tuple[bool, Any, tuple[Any, ...], set[int]]] = [
    (True, aten.silu.default, (X,), {0}),
    (True, aten.sinh.default, (X,), {0}),
    (True, aten.pow.Tensor_Scalar, (X, 2), {0}),
    (True, aten.clamp.default, (X, -1.0, 1.0), {0}),
    (True, aten.to.dtype, (X, torch.bfloat16), {0}),
    (True, aten.mul.Tensor, (X, X), {1}),
    (True, aten.div.Tensor, (X, X), {0}),
    (True, aten.add.Tensor, (X, X), {0, 1}),
    (True, aten.maximum.default, (X, X), {0, 1}),
    (True, aten.slice.Tensor, (X, 0, 1, 3), {0}),
    (False, aten.exp.default, (X,), {0}),
    (False, aten.sigmoid.default, (X,), {0}),
    (False, aten.clamp.default, (X, 0.5, 1.0), {0}),
    (False, aten.add.Scalar, (X, 2), {0}),
    (False, aten.add.Tensor, (X, X), {0}),
    (False, aten.maximum.default, (X, X), {0}),
    (False, aten.softmax.int, (X, 1), {0}),
    (False, aten.div.Tensor, (X, X), {1}),
]


@pytest.mark.parametrize(("expected", "target", "args", "slots"), ZEROS, ids=str)
def test_zeros_to_zeros(
    expected: bool, target: Any, args: tuple[Any, ...], slots: set[int]
) -> None:
    node = Case(AtenCall(target, args, {})).node()
    assert maps_zeros(node, frozenset(slots)) is expected


def test_an_infinite_slope_keeps_no_zeros() -> None:
    """The root of zero is zero, but a zero gradient would come back as NaN."""
    assert not maps_zeros(Case(AtenCall(aten.sqrt.default, (X,), {})).node(), frozenset({0}))


def _contractions() -> list[AtenCall]:
    """Calls of ours that multiply matrices, those of recurrent networks left out."""
    kinds = {OpKind.PRODUCT, OpKind.CONVOLUTION}
    found = [call for call in own_calls() if isinstance(call.target, OpOverload)]
    return [call for call in found if call.target in RULES and RULES[call.target].kind in kinds]


def test_flops_are_those_that_torch_counts() -> None:
    """torch counts products of matrices; those with vectors it does not count."""
    compared = 0
    for call in _contractions():
        with FlopCounterMode(display=False) as counter:
            call.run(call.tensors)
        if counted := counter.get_total_flops():
            assert Case(call).rule().flops() == counted, call
            compared += 1
    assert compared > 8


def test_flops_of_attention_and_of_experts() -> None:
    """Scores and weighted values; each row meets one expert, however many there are."""
    query, key, value = numbers(3, 4, 5, 6), numbers(3, 2, 7, 6), numbers(3, 2, 7, 8)
    attend = aten.scaled_dot_product_attention.default
    call = AtenCall(attend, (query, key, value), {"enable_gqa": True})
    assert Case(call).rule().flops() == 2 * 3 * 4 * 5 * 7 * (6 + 8)
    groups = torch.tensor([0, 2, 1, 2, 0])
    experts = torch.ops.shardlang.grouped_mm.default
    call = AtenCall(experts, (numbers(5, 7), numbers(3, 7, 4), groups), {})
    assert Case(call).rule().flops() == 2 * 5 * 7 * 4


def test_flops_of_a_device() -> None:
    """A device multiplies its own part: of 7 over 2 devices the larger has 4."""
    rule = Case(AtenCall(aten.mm.default, (numbers(5, 7), numbers(7, 9)), {})).rule()
    sharding = Sharding.whole(rule)
    assert sharding.flops() == 2 * 5 * 7 * 9
    sharding.factors["k"] = DimLayout.shard(7, (Axis("tp", 2),))
    assert sharding.flops() == 2 * 5 * 4 * 9


def test_kinds_have_members() -> None:
    assert {declared.kind for declared in RULES.values()} == set(OpKind)
