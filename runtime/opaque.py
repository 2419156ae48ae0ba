"""Ops of a step that stand outside of compiled regions, and run as they are.

What draws random numbers keeps the order of its draws; what autograd holds (`record`, `pull`) is
autograd's; rows of a route are as many as data decides; and a collective joins devices.
"""

from __future__ import annotations

import operator
from collections.abc import Collection

import torch
from torch import fx

from shardlang.ir.collective import Kind
from shardlang.ir.compat import OpOverload, tree_leaves
from shardlang.ir.draws import draws
from shardlang.ir.experts.route import Route
from shardlang.ir.layout import Layout
from shardlang.ir.node import info, is_ordered
from shardlang.ir.step import collectives_of, is_collective, is_wait, pull, record, routed_by

_TAGS = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
"""Of ops whose result's size or value the host reads."""


def opaque(graph: fx.Graph) -> set[fx.Node]:
    """The nodes of a graph of a step that no region takes in."""
    sized = sized_by_data(graph)
    return {
        node
        for node in graph.nodes
        if node.op != "call_function" or node in sized or _is_opaque(node, sized)
    }


def _is_opaque(node: fx.Node, sized: Collection[fx.Node]) -> bool:
    source = _picked_from(node)
    if source is not None:
        return _is_opaque(source, sized)
    if is_collective(node) or is_wait(node) or node.target in (record, pull):
        return True
    if info(node).random or any(x in sized for x in node.all_input_nodes):
        return True
    if any(isinstance(x, Route) for x in tree_leaves((node.args, node.kwargs))):
        return True
    target = node.target
    if not isinstance(target, OpOverload):
        return False
    return target._schema.is_mutable or draws(node) or any(tag in target.tags for tag in _TAGS)


def sized_by_data(graph: fx.Graph) -> set[fx.Node]:
    """The values whose size data decides: rows that a route has sent, and what is made of them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and _is_sized(node, found):
            found.add(node)
    return found


def _is_sized(node: fx.Node, sized: Collection[fx.Node]) -> bool:
    if is_collective(node) and routed_by(node) is not None:
        return collectives_of(node)[0][1].kind is Kind.DISPATCH
    if isinstance(info(node).layout, Layout):
        return is_ordered(node)
    source = _picked_from(node)
    if source is not None and source.target is pull:
        return _operand_pulled(source, node.args[1]) in sized
    return any(x in sized for x in node.all_input_nodes)


def _picked_from(node: fx.Node) -> fx.Node | None:
    """The node of which this one picks a result."""
    source = node.args[0] if node.target is operator.getitem else None
    return source if isinstance(source, fx.Node) else None


def _operand_pulled(node: fx.Node, place: object) -> fx.Node:
    """The operand of a recorded op whose gradient is one of the results of its `pull`."""
    kept = node.args[0]
    assert isinstance(kept, fx.Node) and isinstance(place, int)
    made = _picked_from(kept)
    assert made is not None
    _, _, _, xs, wanted, _ = made.args
    assert isinstance(xs, (list, tuple)) and isinstance(wanted, (list, tuple))
    chosen = wanted[place]
    assert isinstance(chosen, int)
    operand = xs[chosen]
    assert isinstance(operand, fx.Node)
    return operand
