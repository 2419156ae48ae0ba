"""Inputs that every microbatch reads whole, though their first dim is as long as the batch.

The weights of as many classes as a batch has rows are no rows. The typed program tells: an input
that is gathered over the microbatches wherever it is read is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from shardlang.ir.graph import is_reshard, items_of, reshards_of
from shardlang.ir.leaf import LeafKind
from shardlang.ir.mesh import Axis
from shardlang.ir.program import LocalProgram
from shardlang.ir.reshard import Change
from shardlang.spec.types import InputDecl


def never_cut(
    program: LocalProgram, inputs: Iterable[InputDecl], axis: Axis
) -> tuple[InputDecl, ...]:
    """The inputs that lie along the axis and of which nothing reads one part alone.

    Args:
        inputs: what the spec declares; a pattern is among them if that holds for all it matches.
    """
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    whole = {
        leaf.name: axis in leaf.layout.sharded and _is_gathered(nodes[leaf.node], axis)
        for leaf in program.leaves
        if leaf.kind is LeafKind.INPUT
    }
    matched = ((one, [whole[x] for x in whole if one.pattern.matches(x)]) for one in inputs)
    return tuple(one for one, found in matched if found and all(found))


def _is_gathered(node: fx.Node, axis: Axis) -> bool:
    """Whether a value, or what is made of it alone, is gathered wherever it is read."""
    return bool(node.users) and all(_gathers(user, node, axis) for user in node.users)


def _gathers(user: fx.Node, node: fx.Node, axis: Axis) -> bool:
    if is_reshard(user):
        return all(
            _is_gathered(item, axis)
            if axis in reshard.dst.sharded
            else reshard.kind is Change.ALL_GATHER
            for place, item in items_of(user).items()
            for x, reshard in [reshards_of(user)[place]]
            if x is node
        )
    alone = user.op == "call_function" and user.all_input_nodes == [node]
    return alone and _is_gathered(user, axis)
