"""Reshards over the parts of one axis that follow one another: they are one over all of them.

An axis that is used in parts is several axes to every search before. Where a search has taken the
same step along each of them, no device needs what lies between.
"""

from __future__ import annotations

from torch import fx

from shardlang.ir.graph import ShardGraph, reshard_of
from shardlang.ir.mesh import joined
from shardlang.ir.program import apply_reshard
from shardlang.ir.reshard import NoChange, Reshard
from shardlang.ir.rewriter import Rewriter


def join_parts(graph: ShardGraph) -> None:
    """Make one reshard of those over parts of one axis that only read one another."""
    if all(axis.part is None for axis in graph.mesh.axes):
        return
    edit = Rewriter(graph.graph)
    for node in list(graph.graph.nodes):
        while (both := _with_source(node)) is not None:
            before = node.args[0]
            assert isinstance(before, fx.Node)
            edit.become(node, apply_reshard, (before.args[0], both))
            edit.remove(before)


def _with_source(node: fx.Node) -> Reshard | None:
    """The reshard that does what a reshard node and the one that it reads do."""
    before = node.args[0] if node.target is apply_reshard else None
    if not isinstance(before, fx.Node) or before.target is not apply_reshard:
        return None
    first, second = reshard_of(before), reshard_of(node)
    axes = tuple(sorted({*first.axes, *second.axes}))
    if len(before.users) > 1 or first.route or second.route or len(joined(axes)) > 1:
        return None
    try:
        both = Reshard(axes, first.src, second.dst, second.reduce)
    except NoChange:
        return None
    return both if _step(first) == _step(second) == _step(both) else None


def _step(reshard: Reshard) -> tuple[object, ...]:
    """What a reshard does, forward and backward."""
    return reshard.kind, reshard.forward.kind, reshard.adjoint.kind, reshard.reduce
