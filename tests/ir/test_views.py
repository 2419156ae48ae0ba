"""Which ops give views, and which give memory of their own, that a gradient may keep."""

from __future__ import annotations

import pytest
import torch

from shardlang.ir.step import arrives
from shardlang.ir.views import gives_own_memory, gives_view

ATEN = torch.ops.aten


@pytest.mark.parametrize(
    ("target", "view", "own"),
    [
        (ATEN.mm.default, False, True),
        (ATEN.add.Tensor, False, True),
        (ATEN.type_as.default, False, False),
        (ATEN.dropout.default, False, False),
        (ATEN.t.default, True, False),
        (ATEN.reshape.default, True, False),
        (ATEN.add_.Tensor, False, False),
        (ATEN.native_layer_norm.default, False, False),
        (torch.mm, False, False),
    ],
)
def test_memory_of_results(target: object, view: bool, own: bool) -> None:
    assert (gives_view(target), gives_own_memory(target)) == (view, own)


def test_what_an_op_makes_is_nobody_elses() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    made = graph.call_function(ATEN.mm.default, (x, x))
    turned = graph.call_function(ATEN.t.default, (made,))
    assert [arrives(node) for node in (x, made, turned)] == [False, True, False]
