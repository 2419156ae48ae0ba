"""Calls of the primitive ops, which no sample of PyTorch's reaches by itself."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.own_overloads import between
from shardlang.rules import RULES
from shardlang.rules.schema import Operator, tensor_arguments

prims = torch.ops.prims

INTEGERS = {"gcd", "bitwise_not", "bitwise_and", "bitwise_or", "bitwise_xor", "shift_left"}
"""Those that take integers alone."""


def prim_calls() -> Iterator[AtenCall]:
    """One call or more of every primitive op that has a rule."""
    special = {call.target: call for call in _special()}
    yield from special.values()
    for target in RULES:
        if str(target).startswith("prims.") and target not in special:
            yield AtenCall(target, tuple(_operands(target)), {})


def _operands(target: Operator) -> Iterator[Tensor]:
    """Operands of one shape in (0.1, 0.9), where every function here is defined."""
    is_integer = str(target).split(".")[1] in INTEGERS
    for i, _ in enumerate(tensor_arguments(target)):
        x = between(0.1, 0.9, 5, 7, seed=i)
        yield (x * 7).long() + 1 if is_integer else x


def _special() -> Iterator[AtenCall]:
    x = between(-1, 1, 5, 7)
    yield AtenCall(prims.convert_element_type.default, (x, torch.float32), {})
    yield AtenCall(prims.conj_physical.default, (torch.complex(x, 2 * x),), {})
    yield AtenCall(prims.where.default, (x > 0, x, 2 * x), {})
    yield AtenCall(prims.acosh.default, (x.abs() + 1.1,), {})
    for target in (prims.sum, prims.prod, prims.amax, prims.amin):
        yield AtenCall(target.default, (x, [1]), {})
    yield AtenCall(prims.var.default, (x, [1], 1.0), {})
