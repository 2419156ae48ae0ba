"""For the split into microbatches: collectives without their axis, and ways through the graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter

import torch
from torch import fx

from shardlang.ir.collective import Collective, Kind
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.graph import ShardError, is_item
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info
from shardlang.ir.step import collectives_of, is_bucket, is_collective


def without(collective: Collective, axis: Axis) -> Collective:
    """An all-reduce without one axis."""
    axes = tuple(one for one in collective.axes if one != axis)
    src = replace(collective.src, partial=collective.src.partial - {axis})
    kind = collective.kind if axes else Kind.NOTHING
    return replace(collective, kind=kind, axes=axes, src=src)


def is_reduction(node: fx.Node) -> bool:
    """Whether a node reduces or scatters gradients, or is one of those that come of it."""
    if is_item(node):
        return is_collective(node.all_input_nodes[0])
    if not info(node).backward or not is_collective(node):
        return False
    kinds = {collective.kind for _, collective in collectives_of(node)}
    return kinds <= {Kind.NOTHING, Kind.ALL_REDUCE, Kind.REDUCE_SCATTER}


def joins_gradients(node: fx.Node, reduced: set[fx.Node]) -> bool:
    """Whether a node adds up gradients that are summed over microbatches."""
    return node in reduced and node.target is torch.ops.aten.add.Tensor


def gathered_within(collective: Collective, axis: Axis) -> Collective | None:
    """What an all-gather does within each microbatch; None where their rows do not stand together.

    The microbatches then follow one another along the dim.
    """
    place, narrow, wide = collective.cut()
    if not narrow.plain or wide.axes or not narrow.axes or narrow.axes[0] != axis:
        return None
    rest = tuple(one for one in collective.axes if one != axis)
    if set(narrow.axes) != {axis, *rest}:
        return None
    each = DimLayout.shard(narrow.size, (axis,))
    dst = collective.dst.replaced(place, each)
    kind = collective.kind if rest else Kind.NOTHING
    return replace(collective, kind=kind, axes=rest, dst=dst)


def values_of(node: fx.Node) -> list[fx.Node]:
    """The values that a collective node gives."""
    return list(node.users) if is_bucket(node) else [node]


def after_of(nodes: Iterable[fx.Node], until: Collection[fx.Node] = ()) -> set[fx.Node]:
    """The nodes, and everything that is made of them, but for some nodes and what follows these."""
    todo = list(nodes)
    found = set(todo)
    while todo:
        for user in todo.pop().users:
            if user not in found and user not in until and user.op != "output":
                found.add(user)
                todo.append(user)
    return found


def before_of(
    nodes: Iterable[fx.Node],
    until: Container[fx.Node] = (),
    sources: Callable[[fx.Node], Sequence[fx.Node]] = attrgetter("all_input_nodes"),
) -> set[fx.Node]:
    """The nodes, and everything that they are made of, up to some nodes.

    Args:
        sources: what of a node counts as what it is made of.
    """
    todo = list(nodes)
    found = set(todo)
    while todo:
        node = todo.pop()
        for source in () if node in until else sources(node):
            if source not in found:
                found.add(source)
                todo.append(source)
    return found


def check_made_at_once(*pieces: list[fx.Node]) -> None:
    """Refuse a value of all microbatches that is made of another: parts of both are made together.

    Raises:
        ShardError: SH0409.
    """
    for values in pieces:
        later = after_of(user for x in values for user in x.users if user.op != "output")
        for node in values:
            if node in later:
                what = "a value of all rows of the batch is made of another such value"
                raise refused(summed(node), what)


def refused(
    node: fx.Node, what: str, help: str = "let the model compute this row by row"
) -> ShardError:
    return ShardError(
        "SH0409", f"{what}, so the batch cannot be cut into microbatches", node=node, help=help
    )


def refused_reader(node: fx.Node) -> ShardError:
    """The refusal of an op that reads what would have to be gathered over the microbatches."""
    name = f"`{info(node).reader or node.name}`"
    if any(info(reader).random for value in values_of(node) for reader in value.users):
        help = "set its own `dropout` to 0, and let `nn.Dropout` draw between single layers"
        return refused(node, f"{name} draws inside, for the rows of all microbatches at once", help)
    return refused(node, f"{name} needs the rows of all microbatches at once")


def summed(node: fx.Node) -> fx.Node:
    """What the collective adds up that gives a value."""
    collective = node.all_input_nodes[0] if is_item(node) else node
    pairs = collectives_of(collective)
    place = node.args[1] if is_item(node) else 0
    assert isinstance(place, int)
    return pairs[place][0]
