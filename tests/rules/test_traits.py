"""Traits that an op does not have are found; `test_prove.py` compares those of all rules with the
ops."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from shardlang.ir.traits import OpKind
from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.check import Case
from shardlang.proof.rules.own import numbers
from shardlang.proof.rules.traits import wrong_traits
from shardlang.rules.registry import RULES

aten: Any = torch.ops.aten
X = numbers(5, 7)


def found_in(call: AtenCall) -> list[str]:
    """What is wrong with the traits of a call."""
    return list(wrong_traits(call, Case(call).rule()))


WRONG: dict[str, tuple[AtenCall, dict[str, Any], str]] = {
    "a view without its trait": (
        AtenCall(aten.transpose.int, (X, 0, 1), {}),
        {"view": False},
        "lies in the memory of operand 0, not None",
    ),
    "a copy that is no view": (
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


def test_kinds_have_members() -> None:
    assert {declared.kind for declared in RULES.values()} == set(OpKind)
