"""Memory of its own for every result that has it in the model.

What only copies is dropped, for it has no effect on values. Then a result may be left in the memory
of a parameter, an input, a buffer or another result, which is written later: by the optimizer, by
the loop, or at the end of the call, where it writes buffers. Where results lie in the model, the
traced tensors say: fake ones share storage as real ones do.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, fx

from shardlang.ir.compat import OpOverload, storage_key
from shardlang.ir.node import tensor_of
from shardlang.ir.rewriter import Rewriter, origin_of
from shardlang.ir.views import gives_view
from shardlang.passes.normalize.fx_edit import is_op

aten = torch.ops.aten

COPYING = {aten.index_copy, aten._foreach_copy}
"""Ops with the name of a copying view that are none."""

Placed: TypeAlias = tuple[fx.Node, Tensor]
"""A value, and a tensor that lies where the model has it."""


def lie_apart(
    graph: fx.Graph,
    results: Sequence[Placed],
    leaves: Mapping[fx.Node, Tensor],
    closed: Collection[fx.Node],
) -> list[fx.Node]:
    """The results, copied where they would lie in memory that is not theirs in the model.

    Args:
        results: what the caller gets, and what replaces a buffer.
        leaves: the placeholders, as they were traced.
        closed: those of them in which no result may lie: what the call writes at its end, and
            literals, which the model makes anew at every call.
    """
    edit, taken = Rewriter(graph), dict[fx.Node, int]()
    made, copies = [], dict[tuple[fx.Node, int], fx.Node]()
    for node, traced in results:
        base, place = _base(node), storage_key(traced)
        if base in leaves:
            own = base in closed or place != storage_key(leaves[base])
        else:
            own = taken.setdefault(base, place) != place
        if own and (node, place) not in copies:
            copies[node, place] = _copied(edit, node)
        made.append(copies[node, place] if own else node)
    return made


def _copied(edit: Rewriter, node: fx.Node) -> fx.Node:
    """A copy, made behind all else."""
    record = replace(origin_of(node), value=edit.run(aten.clone.default, (node,), {}))
    before = edit.graph.output_node()
    return edit.add(aten.clone.default, (node,), record=record, before=before)


def _base(node: fx.Node) -> fx.Node:
    """The value in whose memory another may lie."""
    while (source := _viewed(node)) is not None:
        node = source
    return node


def _viewed(node: fx.Node) -> fx.Node | None:
    """The value of which another is a view, or will be: of a view that copies the view is left."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        (several,) = node.all_input_nodes
        return _viewed(several)
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node) or not _views(node.target):
        return None
    casts = is_op(node, [aten.to]) and tensor_of(node).dtype != tensor_of(first).dtype
    return None if casts else first


def _views(target: object) -> bool:
    if gives_view(target):
        return True
    if not isinstance(target, OpOverload) or target.overloadpacket in COPYING:
        return False
    name: str = target.overloadpacket.__name__
    return name.endswith("_copy")
