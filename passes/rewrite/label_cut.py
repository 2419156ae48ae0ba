"""The minimum cut along one axis that labels whole values invariant (`I`) or replicated (`R`).

Every whole value has a label vertex and a copy that its consumers read; source side is `I`, sink
side `R`. A cut edge is a backward collective: label to copy is the all-reduce of a shared `vary`;
source to label what an all-reduce or a gather pays for giving an `R`; copy to sink the all-gather
after a slice of an `I`. Consumers that need `R` tie the copy to the sink, and so does a slice along
microbatches, which follow each other in time: no gradient is gathered over them. Ties go to `I`.
The cut is exact along one axis. Along the second part of an axis it knows the labels along the
first: where a reader takes a copy that is `R` along the first part alone, the sum over that part is
a call by itself, beside the one over both parts that other readers ask for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from enum import Enum

import networkx as nx
from networkx.algorithms.flow import boykov_kolmogorov
from torch import fx

from shardlang.cost.held import value_bytes
from shardlang.cost.ring import ring_limit
from shardlang.ir.accumulated import MICROBATCH
from shardlang.ir.graph import (
    ShardGraph,
    is_item,
    is_reshard,
    producer,
    reshard_of,
    result_layout,
    sharding_of,
)
from shardlang.ir.mesh import Axis
from shardlang.ir.node import has_several, info
from shardlang.ir.reshard import gradient_kind
from shardlang.ir.state import State

SOURCE, SINK = State.INVARIANT, State.REPLICATED
UNIT = 2**16
"""Capacity of one byte; smaller amounts break ties: a `vary` rather stands on a leaf than later,
where the gradients of many leaves can be sent together."""

Vertex = State | tuple[str, fx.Node]
Whole = Callable[[fx.Node, Axis], bool]
"""`is_whole`, each answer found once."""

Labels = Mapping[Axis, set[Vertex]]
"""By axis, the vertices on the `R` side of its cut."""


class Need(Enum):
    """What a reader asks of the label of a whole operand."""

    INVARIANT = "invariant"
    REPLICATED = "replicated"
    SHARED = "shared"
    """The reader's own label."""
    SLICED = "sliced"
    """Either, but the gradient of a slice of an invariant value is gathered."""
    NOTHING = "nothing"


_NEEDS = {State.SHARDED: Need.SLICED, State.PARTIAL: Need.NOTHING}
"""What a reshard asks for, by the state that it leads to."""


def label_vertex(node: fx.Node) -> Vertex:
    """The label of a value; results of one op share it."""
    return "label", producer(node)[0]


def copy_vertex(node: fx.Node) -> Vertex:
    """What the consumers of a value read."""
    return "copy", node


def is_whole(node: fx.Node, axis: Axis) -> bool:
    """Whether a value has a label along the axis: a gradient, and neither split nor partial."""
    if not info(node).differentiable or has_several(node):
        return False
    layout = result_layout(node)
    return axis not in layout.partial and layout.dim_of(axis) is None


def replicated(graph: ShardGraph, axis: Axis, known: Labels) -> set[Vertex]:
    """The vertices on the `R` side of the minimum cut along one axis.

    Args:
        known: those along the axes before it.
    """
    parts = {a: sink for a, sink in known.items() if a.stretch[0] == axis.stretch[0]}
    net, whole = nx.DiGraph(), functools.cache(is_whole)
    net.add_nodes_from([SOURCE, SINK])
    for node in graph.graph.nodes:
        if node.op == "output" or not info(node).differentiable:
            continue
        if whole(node, axis):
            _add_value(net, node, axis)
        _add_uses(net, node, axis, whole)
        _add_calls(net, node, axis, parts, whole)
    _, (_, sink_side) = nx.minimum_cut(net, SOURCE, SINK, flow_func=boykov_kolmogorov)
    return set(sink_side) - {SINK}


def _add_value(net: nx.DiGraph, node: fx.Node, axis: Axis) -> None:
    """The edges of one whole value."""
    label, copy = label_vertex(node), copy_vertex(node)
    size = value_bytes(node) * UNIT
    leaf = node.op == "placeholder"
    vary = ring_limit(gradient_kind(SOURCE, SINK), size)
    net.add_edge(label, copy, capacity=vary + (not leaf))
    if leaf:
        net.add_edge(SOURCE, label)
    elif _beside_split(node, axis):
        net.add_edge(label, SINK)
    elif is_reshard(node) and axis in reshard_of(node).axes:
        before = reshard_of(node).src.state(axis)
        if not before.whole:
            net.add_edge(SOURCE, label, capacity=ring_limit(gradient_kind(before, SINK), size))


def _beside_split(node: fx.Node, axis: Axis) -> bool:
    """Whether the value is a whole result of an op that is split, whose operands are `R`."""
    source = producer(node)[0]
    if info(source).sharding is None:
        return False
    sharding = sharding_of(source)
    return axis in sharding.linear or sharding.factor_of(axis) is not None


def _add_uses(net: nx.DiGraph, node: fx.Node, axis: Axis, whole: Whole) -> None:
    """The edges from what a node reads to the node."""
    for operand in set(node.all_input_nodes):
        if not whole(operand, axis) or is_item(node):
            continue
        need = needed_label(node, axis)
        copy = copy_vertex(operand)
        if need is Need.REPLICATED or (need is Need.SLICED and axis.name == MICROBATCH):
            net.add_edge(copy, SINK)
        elif need is Need.SHARED:
            net.add_edge(copy, label_vertex(node))
        elif need is Need.SLICED:
            size = ring_limit(gradient_kind(SOURCE, State.SHARDED), value_bytes(operand) * UNIT)
            had = net.get_edge_data(copy, SINK)
            if had is None:
                net.add_edge(copy, SINK, capacity=size)
            elif "capacity" in had:
                had["capacity"] += size


def _add_calls(net: nx.DiGraph, node: fx.Node, axis: Axis, parts: Labels, whole: Whole) -> None:
    """What it costs if a node takes a copy that is `R` along other parts of the axis alone."""
    for operand in set(node.all_input_nodes) if parts else ():
        if not whole(operand, axis) or needed_label(node, axis) is not Need.SHARED:
            continue
        if any(_takes(node, operand, part, sink, whole) for part, sink in parts.items()):
            alone = "alone", operand
            size = ring_limit(gradient_kind(SOURCE, SINK), value_bytes(operand) * UNIT)
            net.add_edge(label_vertex(node), alone)
            net.add_edge(alone, SINK, capacity=size)


def _takes(node: fx.Node, operand: fx.Node, axis: Axis, sink: set[Vertex], whole: Whole) -> bool:
    """Whether a node reads an `R` copy of an `I`."""
    if not whole(operand, axis) or label_vertex(operand) in sink:
        return False
    need = needed_label(node, axis)
    return need is Need.REPLICATED or (need is Need.SHARED and label_vertex(node) in sink)


def needed_label(node: fx.Node, axis: Axis) -> Need:
    """What a reader asks of its whole operands along an axis."""
    if node.op == "output":
        return Need.INVARIANT
    if is_reshard(node):
        reshard = reshard_of(node)
        if axis not in reshard.axes:
            return Need.SHARED
        return _NEEDS.get(reshard.dst.state(axis), Need.SHARED)
    sharding = sharding_of(node)
    split = axis in sharding.linear or sharding.factor_of(axis) is not None
    return Need.REPLICATED if split else Need.SHARED
