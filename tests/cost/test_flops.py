"""The operations of calls, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from shardlang.cost.effects import Held, TensorType
from shardlang.cost.flops import flops_of

aten = torch.ops.aten
FORWARD = 2 * (2 * 4 * 6 * 5) * (3 * 3 * 3)
"""Two for each of the 2 x 4 x 6 x 5 results and each weight of its channel."""


@pytest.mark.parametrize(
    ("wanted", "times"),
    [((True, True, True), 2), ((False, True, False), 1), ((False, False, True), 0)],
)
def test_each_gradient_takes_what_the_forward_takes(
    wanted: tuple[bool, bool, bool], times: int
) -> None:
    """The gradient of the bias is a sum, and no product."""
    graph = fx.Graph()
    nodes = [graph.placeholder(name) for name in ("given", "x", "weight")]
    options = ([4], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, list(wanted))
    node = graph.call_function(aten.convolution_backward.default, (*nodes, *options))
    shapes = ((2, 4, 6, 5), (2, 3, 8, 7), (4, 3, 3, 3))
    types = tuple(TensorType.dense(shape, torch.float32) for shape in shapes)
    assert flops_of(node, types, None) == times * FORWARD


def test_an_op_without_products_takes_none_though_it_reads_a_value_twice() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(aten.cat.default, ([x, x],))
    assert flops_of(node, (TensorType.dense((2, 3), torch.float32),), None) == 0


@pytest.mark.parametrize("read", [(0, 1, 1), (1, 1, 0), (1, 0, 1), (1, 1, 1)])
def test_a_product_may_read_a_value_twice(read: tuple[int, int, int]) -> None:
    """Each of its operands has its own type, whichever of them are one value."""
    graph = fx.Graph()
    nodes = [graph.placeholder(name) for name in ("row", "square")]
    node = graph.call_function(aten.addmm.default, tuple(nodes[i] for i in read))
    of = {nodes[0]: (5,), nodes[1]: (5, 5)}
    if read[1:] != (1, 1):
        of[nodes[0]] = (5, 5)
    types = tuple(TensorType.dense(of[x], torch.float32) for x in node.all_input_nodes)
    result = TensorType.dense((5, 5), torch.float32)
    assert flops_of(node, types, Held(result, (0,))) == 2 * 5 * 5 * 5
