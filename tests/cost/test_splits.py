"""The price of a way to split an op against the program that it makes of that op."""

from __future__ import annotations

import pytest

from shardlang.cost.splits import split_bytes
from tests.cost.alone import propagated, ways
from tests.cost.compiled import compiled_bytes
from tests.plan.plans import FSDP, SP, STACK, TP

UNEVEN = """
mesh { dp = 2 tp = 3 }
model "models.py:stack"(d = 10, f = 14, layers = 2)
input x : f32[5, 7, 10] [dp, tp, _]
param "**.up.{weight,bias}" [tp, ...]
param "**.down.weight" [_, tp]
"""
SPECS = {"tensor parallel": TP, "sequence": SP, "two mesh axes": STACK, "stored": FSDP,
         "uneven": UNEVEN}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_the_price_is_what_the_op_s_own_program_sends(name: str) -> None:
    """Every op, every way along every axis, compiled."""
    _, flow = propagated(SPECS[name])
    tried = 0
    for node, axis, sharding in ways(flow):
        price = split_bytes(node, flow.dims.operands[node], sharding)
        found = compiled_bytes(flow, node, sharding)
        if found is not None:
            assert abs(found.sent - price) <= found.slack, (node, axis, found.text)
            tried += 1
    assert tried > 10
