"""Tables: positions, masks, rotary angles and whatever else depends on no parameter and no input.

Every device can make a table for itself, so a table is laid out last, by those that read it: as
they all need it, if they agree and no device needs more than its own part for that, and whole
otherwise, of which every reader takes its part for nothing. It leads no layout from one reader to
another, and nothing of it is sent. Unstated buffers and constants of the model are tables too.
"""

from __future__ import annotations

from torch import fx

from shardlang.ir.dims import DimGraph
from shardlang.ir.graph import ShardGraph, producer, sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import LeafKind
from shardlang.ir.node import has_several, info
from shardlang.ir.rule import Sharding
from shardlang.passes.propagate.adopt import adopt, groups_of

HELD = (LeafKind.BUFFER, LeafKind.CONSTANT)


def tables_of(graph: ShardGraph) -> set[fx.Node]:
    """The tables among leaves and ops; what is stated is none, nor what is drawn."""
    leaves, found = dict(graph.placeholders()), set[fx.Node]()
    for node, sources in graph.dims.operands.items():
        if info(node).stated is not None or sharding_of(node).rule.random:
            continue
        leaf = leaves.get(node)
        held = leaf is None or leaf.kind in HELD
        if held and all(producer(source)[0] in found for source in sources):
            found.add(node)
    return found


def lay_out_tables(graph: ShardGraph, tables: set[fx.Node]) -> None:
    """Lay out all tables, last first, each as what reads it needs it."""
    make_whole(tables)
    results = {node for node in graph.result_nodes if node is not None}
    for node in reversed(list(graph.dims.operands)):
        if node in tables and not has_several(node):
            goal = None if node in results else wanted(graph.dims, node)
            if goal is not None and goal.sharded:
                lay_out(node, goal)


def make_whole(tables: set[fx.Node]) -> None:
    """Let no table be split."""
    for node in tables:
        sharding = sharding_of(node)
        sharding.factors, sharding.origins = Sharding.whole(sharding.rule).factors, {}


def wanted(dims: DimGraph, node: fx.Node) -> Layout | None:
    """The layout in which all read a value; None where they differ."""
    found = {sharding_of(use.reader).operand(use.slot) for use in dims.uses[node]}
    return found.pop() if len(found) == 1 else None


def lay_out(node: fx.Node, goal: Layout) -> None:
    """Make a table in the layout that is wanted, if each device can make its part from parts."""
    sharding = sharding_of(node)
    before = Sharding(sharding.rule, dict(sharding.factors), origins=dict(sharding.origins))
    found = {n: d for n, d in sharding.read_result(0, goal).items() if d.axes}
    if sharding.rule.whole.isdisjoint(found):
        for names in groups_of(sharding.rule, found):
            adopt(sharding, {n: found[n] for n in names}, frozenset(goal.sharded), node.name)
    if sharding.result() != goal or sharding.needs_lowering() or sharding.inner_axes():
        sharding.factors, sharding.origins = before.factors, before.origins
