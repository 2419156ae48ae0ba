"""What holds of buckets: several reshards that are sent as one call."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from shardlang.ir.graph import steps_of
from shardlang.ir.node import info, tensors_of
from shardlang.ir.program import apply_steps
from shardlang.ir.reshard import Reshard
from shardlang.passes.invariants.invariant import View, invariant


@invariant
def buckets_alike(view: View) -> Iterator[str]:
    """The reshards of one bucket are of one kind, over the same axes and of one dtype."""
    for node in view.steps:
        if node.target is apply_steps:
            yield from _alike(node, steps_of(node))


def _alike(node: fx.Node, pairs: list[tuple[fx.Node, Reshard]]) -> Iterator[str]:
    values, steps = zip(*pairs, strict=True)
    if len({(step.kind, step.axes, step.reduce) for step in steps}) > 1:
        yield f"{node} sends {', '.join(map(str, steps))} as one call"
    dtypes = {tensor.dtype for value in values for tensor in tensors_of(value)}
    if len(dtypes) > 1:
        yield f"{node} sends values of {sorted(map(str, dtypes))} as one call"
    layouts = info(node).layout
    if layouts != tuple(step.dst for step in steps):
        yield f"{node} is {layouts}, and its steps end in {[str(step.dst) for step in steps]}"
    for value, step in pairs:
        if info(value).layout != step.src:
            yield f"{node}: {step} reads `{value}`, which is {info(value).layout}"
