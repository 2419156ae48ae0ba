"""What a trace computes for nothing: left out where every number stays the same to the last bit."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

_POW = torch.ops.aten.pow.Tensor_Scalar
_EXPAND = torch.ops.aten.expand.default
_SCALED = (torch.ops.aten.div.Scalar, torch.ops.aten.div.Tensor)


def compute_less(graph: fx.Graph, forward: Collection[fx.Node]) -> None:
    """Leave out first powers, and divide a gradient before it is expanded instead of behind it.

    The backward of a square takes the first power of its operand, and that of a mean divides every
    element of an expanded gradient by one number.

    Args:
        forward: the nodes that stay as they are.
    """
    for node in [node for node in graph.nodes if node not in forward]:
        if node.target is _POW and node.args[1] == 1:
            _leave_out(graph, node)
        elif node.target in _SCALED and _is_of_a_number(node):
            _divide_first(graph, node)


def _leave_out(graph: fx.Graph, power: fx.Node) -> None:
    """Let those that read a first power read its operand; what has a gradient is of floats."""
    operand = power.args[0]
    assert isinstance(operand, fx.Node)
    power.replace_all_uses_with(operand)
    graph.erase_node(power)


def _divide_first(graph: fx.Graph, quotient: fx.Node) -> None:
    expanded = quotient.args[0]
    assert isinstance(expanded, fx.Node)
    if expanded.target is not _EXPAND or len(expanded.users) > 1:
        return
    assert callable(quotient.target)
    with graph.inserting_before(expanded):
        divided = graph.call_function(
            quotient.target, (expanded.args[0], *quotient.args[1:]), quotient.kwargs
        )
    expanded.args = (divided, *expanded.args[1:])
    quotient.replace_all_uses_with(expanded)
    graph.erase_node(quotient)


def _is_of_a_number(quotient: fx.Node) -> bool:
    """Whether every element is divided by the same number."""
    return isinstance(quotient.args[1], (int, float)) and isinstance(quotient.args[0], fx.Node)
