"""A call's arguments: each is read as one kind of value, and nothing else passes for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from shardlang.ir.node import NodeInfo, set_info
from shardlang.rules.call import Call

aten = torch.ops.aten


def _call(op: Callable[..., object], shapes: list[tuple[int, ...]], *rest: object) -> Call:
    graph = fx.Graph()
    nodes = [graph.placeholder(f"x{i}") for i in range(len(shapes))]
    for node, shape in zip(nodes, shapes, strict=True):
        set_info(node, NodeInfo(torch.empty(shape, device="meta")))
    return Call(graph.call_function(op, (*nodes, *rest)))


def test_arguments_are_read_as_what_they_are() -> None:
    summed = _call(aten.sum.dim_IntList, [(3, 5, 7)], [-1, 0], True)
    assert summed.operand("self").name == "x0"
    assert (summed.dims(), summed.integers("dim")) == ((0, 2), [-1, 0])
    assert summed.flag("keepdim") and summed.dtype("dtype") is None
    normed = _call(aten.layer_norm.default, [(3, 5)], [5])
    assert normed.integers("normalized_shape") == [5] and normed.optional("weight") is None
    assert normed.number("eps") == 1e-05 and normed.flag("cudnn_enable")


def test_an_argument_that_the_op_has_not_has_the_readers_default() -> None:
    call = _call(aten.select.int, [(3, 5)], -1, 2)
    assert (call.dim(), call.integer("index")) == (1, 2)
    assert call.integer("step", 4) == 4 and call.number("p", 0.5) == 0.5
    assert call.flag("keepdim", True) and not call.flag("keepdim")


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda call: call.integer("dim"), r"`dim` is \[1\], not a whole number"),
        (lambda call: call.flag("dim"), r"`dim` is \[1\], not yes or no"),
        (lambda call: call.operand("dim"), r"`dim` is \[1\], not a tensor"),
        (lambda call: call.number("self"), "`self` is x0, not a number"),
        (lambda call: call.integers("keepdim"), "`keepdim` is True, not a list"),
        (lambda call: call.integer("missing"), "`missing` is None, not a whole number"),
    ],
)
def test_another_kind_of_value_is_an_error(read: Callable[[Call], object], said: str) -> None:
    """It names the call, the argument and the value, where sums with it would go wrong later."""
    with pytest.raises(AssertionError, match=said) as caught:
        read(_call(aten.sum.dim_IntList, [(3, 5)], [1], True))
    assert "aten.sum.dim_IntList" in str(caught.value)
