"""What holds of buckets: several reshards that are sent as one call."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from shardlang.ir.graph import items_of, laid_out_from, reshards_of
from shardlang.ir.node import info, tensors_of
from shardlang.ir.program import apply_reshards
from shardlang.ir.reshard import Reshard
from shardlang.passes.invariants.invariant import View, invariant


@invariant
def buckets_alike(view: View) -> Iterator[str]:
    """The reshards of one bucket are of leaves, of one kind both ways, over the same axes and of
    one dtype."""
    for node in view.reshards:
        if node.target is apply_reshards:
            yield from _alike(node, reshards_of(node))


def _alike(node: fx.Node, pairs: list[tuple[fx.Node, Reshard]]) -> Iterator[str]:
    values, reshards = zip(*pairs, strict=True)
    if len({(reshard.kind, reshard.axes, reshard.reduce) for reshard in reshards}) > 1:
        yield f"{node} sends {', '.join(map(str, reshards))} as one call"
    items = items_of(node)
    backs = {r.adjoint.kind for i, r in enumerate(reshards) if i in items and _flows(items[i])}
    if len(backs) > 1:
        yield f"{node} sends gradients by {', '.join(sorted(backs))} as one call"
    for value in values:
        if not _is_leaf(value):
            yield f"{node} sends `{value}`, which is no leaf in some layout"
    dtypes = {tensor.dtype for value in values for tensor in tensors_of(value)}
    if len(dtypes) > 1:
        yield f"{node} sends values of {sorted(map(str, dtypes))} as one call"
    layouts = info(node).layout
    if layouts != tuple(reshard.dst for reshard in reshards):
        ends = [str(reshard.dst) for reshard in reshards]
        yield f"{node} is {layouts}, and its reshards end in {ends}"
    for value, reshard in pairs:
        if info(value).layout != reshard.src:
            yield f"{node}: {reshard} reads `{value}`, which is {info(value).layout}"


def _flows(node: fx.Node) -> bool:
    return info(node).differentiable


def _is_leaf(node: fx.Node) -> bool:
    """Whether nothing but changes of layout has touched a leaf."""
    source: fx.Node | None = node
    while source is not None and source.op != "placeholder":
        source = laid_out_from(source)
    return source is not None
