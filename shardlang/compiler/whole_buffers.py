"""Refusing updates of split buffers that read all of the buffer.

A buffer is stated split so that no device holds all of it. An update for which every device must
gather it would undo that at every step.
"""

from __future__ import annotations

import networkx as nx
from torch import fx

from shardlang.ir.collective import Kind
from shardlang.ir.graph import ShardError, ShardGraph, is_reshard, reshards_of
from shardlang.ir.leaf import ResultKind
from shardlang.ir.mesh import Axis, product
from shardlang.ir.node import info
from shardlang.ir.values import values


def check_updates(graph: ShardGraph) -> None:
    """Check the buffers that the model writes; `graph` has its reshards.

    Raises:
        ShardError: SH0408, a new value is computed from a gathered one.
    """
    buffers = {leaf.name: node for node, leaf in graph.placeholders()}
    values = graph.output.args[0]
    assert isinstance(values, (tuple, list))
    for result, value in zip(graph.results, values, strict=True):
        if result.kind is ResultKind.MUTATION and isinstance(value, fx.Node):
            buffer = buffers[result.name]
            axes = _split_over(buffer)
            gather = _gathered_between(buffer, value) if axes else None
            if gather is not None:
                raise _refusal(result.name, axes, gather)


def _split_over(buffer: fx.Node) -> tuple[Axis, ...]:
    """The axes over which a buffer is stated to be split."""
    stated = info(buffer).stated
    return tuple(stated.layout.sharded) if stated is not None else ()


def _gathered_between(start: fx.Node, end: fx.Node) -> fx.Node | None:
    """The first gather on a way from one value to another."""
    net = values(start.graph)
    between = (nx.descendants(net, start) | {start}) & (nx.ancestors(net, end) | {end})
    nodes = (node for node in start.graph.nodes if node in between)
    return next((node for node in nodes if _is_gather(node)), None)


def _is_gather(node: fx.Node) -> bool:
    steps = [step for _, step in reshards_of(node)] if is_reshard(node) else []
    return any(step.forward.kind is Kind.ALL_GATHER for step in steps)


def _refusal(name: str, axes: tuple[Axis, ...], gather: fx.Node) -> ShardError:
    reader = next(iter(gather.users))
    over = product(axes)
    return ShardError(
        "SH0408",
        f"the new value of buffer `{name}`, which is split over {over}, needs all of the old one",
        node=reader,
        help="leave the buffer whole, or update every part of it from that part alone",
    )
