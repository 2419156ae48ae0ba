"""Views of views, in the ops of a trace: one reshape for two, and none for a transpose and back."""

from __future__ import annotations

import torch
from torch import fx

_RESHAPE = torch.ops.aten.reshape.default
_TRANSPOSES = (torch.ops.aten.t.default, torch.ops.aten.transpose.int)


def fold_views(graph: fx.Graph) -> None:
    """Let every view read the value that the view before it reads, where one view does both."""
    for node in list(graph.nodes):
        source = node.args[0] if node.op == "call_function" and node.args else None
        if not isinstance(source, fx.Node):
            continue
        if node.target is _RESHAPE and source.target is _RESHAPE:
            node.replace_input_with(source, _operand(source))
        elif _undoes(node, source):
            node.replace_all_uses_with(_operand(source))


def _undoes(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node transposes back."""
    if node.target not in _TRANSPOSES or source.target is not node.target:
        return False
    return set(node.args[1:]) == set(source.args[1:])


def _operand(view: fx.Node) -> fx.Node:
    operand = view.args[0]
    assert isinstance(operand, fx.Node)
    return operand
