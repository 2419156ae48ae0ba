"""repeat_heads: attention whose groups of heads do not lie in one piece.

Grouped attention is split by its groups: a device has some key heads and all query heads that read
them. Where the stated layouts split the query heads otherwise (8 over 4 devices, with 2 key heads),
key and value are repeated to one head per query head, as grouped attention is defined. Every device
then takes those that its own query heads read, and its attention is split all the same; the
gradients of a key head are summed over the devices that share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import fx

from shardlang.ir.graph import ShardGraph
from shardlang.ir.layout import DimLayout, all_pieces_nonempty, split_factors
from shardlang.ir.leaf import LeafKind
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info, tensor_of
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.invariant import Invariant, View, invariant
from shardlang.passes.normalize.fx_edit import argument, is_op

aten = torch.ops.aten


@invariant
def groups_whole(view: View) -> Iterator[str]:
    """No stated layout of an attention's parameters cuts a group of its query heads."""
    for node in view.nodes:
        if is_op(node, [aten.scaled_dot_product_attention]) and _cuts_groups(view.graph, node):
            yield f"{node} shares its key heads between query heads of several devices"


@dataclass(frozen=True, slots=True)
class RepeatHeads:
    """Repeat key and value heads where the layouts of an attention's parameters cut its groups."""

    name: str = "repeat_heads"
    establishes: ClassVar[tuple[Invariant, ...]] = (groups_whole,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Rewrite every such attention."""
        edit = Rewriter(graph.graph)
        for node in list(graph.graph.nodes):
            if is_op(node, [aten.scaled_dot_product_attention]) and _cuts_groups(graph, node):
                _repeat(edit, node)
        return graph


def _cuts_groups(graph: ShardGraph, node: fx.Node) -> bool:
    """Whether a stated layout splits the query heads, and not by groups."""
    query, key = (tensor_of(x) for x in node.all_input_nodes[:2])
    if not argument(node, "enable_gqa") or query.dim() < 3 or query.shape[-3] == key.shape[-3]:
        return False
    groups = key.shape[-3]
    for axes in _stated_axes(graph, info(node).module):
        heads = DimLayout.shard(query.shape[-3], axes)
        _, lost = split_factors(heads, (groups, query.shape[-3] // groups))
        if lost and all_pieces_nonempty(heads):
            return True
    return False


def _stated_axes(graph: ShardGraph, module: str) -> Iterator[tuple[Axis, ...]]:
    """The model axes of every dim that is stated of a parameter in a module."""
    for param, leaf in graph.placeholders():
        if leaf.kind is LeafKind.PARAM and (not module or leaf.name.startswith(f"{module}.")):
            for node in (param, *param.users):
                stated = info(node).stated
                dims = stated.layout.dims if stated is not None else ()
                yield from (d.axes for d in dims if d.axes and not graph.data_axes & {*d.axes})


def _repeat(edit: Rewriter, node: fx.Node) -> None:
    """One key and value head per query head."""
    query, *pair = cast(tuple[fx.Node, ...], node.args[:3])
    made = (one_head_per_query(edit, x, query, node) for x in pair)
    node.args = (query, *made, *node.args[3:])
    node.kwargs = {k: v for k, v in node.kwargs.items() if k != "enable_gqa"}


def one_head_per_query(edit: Rewriter, x: fx.Node, query: fx.Node, like: fx.Node) -> fx.Node:
    """Repeat the grouped heads of a key or value so that there is one per query head."""
    times = tensor_of(query).shape[-3] // tensor_of(x).shape[-3]
    if times == 1:
        return x
    return edit.call(aten.repeat_interleave.self_int, x, times, -3, like=like)
