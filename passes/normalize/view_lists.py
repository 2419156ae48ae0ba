"""Views of several tensors that one op makes, as the views of each."""

from __future__ import annotations

import operator

import torch
from torch import fx

from shardlang.ir.node import tensor_of
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.normalize.fx_edit import is_op

aten = torch.ops.aten


def write_out_view_lists(graph: fx.Graph) -> None:
    """Let every tensor that is broadcast with others, or spans a grid, be expanded by itself."""
    edit = Rewriter(graph)
    for node in list(graph.nodes):
        if not is_op(node, [aten.broadcast_tensors, aten.meshgrid]):
            continue
        for item in list(node.users):
            assert item.target is operator.getitem
            edit.replace(item, _expanded(edit, node, item))
        edit.remove(node)


def _expanded(edit: Rewriter, node: fx.Node, item: fx.Node) -> fx.Node:
    """One of the tensors in the shape of all."""
    given, (_, place) = node.args[0], item.args
    assert isinstance(given, (list, tuple)) and isinstance(place, int)
    source, shape = given[place], list(tensor_of(item).shape)
    assert isinstance(source, fx.Node)
    if is_op(node, [aten.meshgrid]):
        place = place % len(shape)
        crossed = node.kwargs.get("indexing", (*node.args, "ij")[1]) == "xy" and len(shape) > 1
        dim = 1 - place if crossed and place < 2 else place
        sizes = [size if i == dim else 1 for i, size in enumerate(shape)]
        source = edit.call(aten.view.default, source, sizes, like=item)
    return edit.call(aten.expand.default, source, shape, like=item)
