"""From a captured graph and bound statements to the graph that the passes work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import fx

from shardlang.capture import Captured
from shardlang.ir.graph import ShardGraph, constrain
from shardlang.ir.leaf import Leaf, ResultKind, Stored, ValueKey
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.node import NodeInfo, info, set_info, tensor_of
from shardlang.ir.pipeline.split import Split
from shardlang.ir.records import Stated
from shardlang.ir.rewriter import Rewriter, copy_graph
from shardlang.ir.step_options import NO_OPTIONS, StepOptions
from shardlang.passes.propagate.assign_stages import assign_stages


@dataclass(frozen=True, slots=True)
class Storage:
    """Axes over which a parameter is also split at rest."""

    axes: tuple[Axis, ...]
    splits: Stored = Stored.VALUE
    regather: bool = False


@dataclass(frozen=True, slots=True)
class Statements:
    """What a spec says of one model's tensors, by the model's own names.

    Attributes:
        leaves: layouts of parameters, buffers and inputs.
        values: layouts of what modules read and return.
        outputs: layouts of results.
        stores: storage of parameters.
        loss: the result that is the loss.
        fast_random: shards draw from streams of their own.
        weighs: what propagation leaves open is weighed over chains of ops.
        step: the options of the passes on the step program.
        split: the stages into which the model is split, if it is.
    """

    mesh: Mesh
    data_axes: frozenset[Axis] = frozenset()
    leaves: Mapping[str, Stated] = field(default_factory=dict)
    values: Mapping[ValueKey, Stated] = field(default_factory=dict)
    outputs: Mapping[str, Stated] = field(default_factory=dict)
    stores: Mapping[str, Storage] = field(default_factory=dict)
    loss: str | None = None
    fast_random: bool = False
    weighs: bool = True
    step: StepOptions = NO_OPTIONS
    split: Split | None = None


def build_graph(
    captured: Captured, statements: Statements, source: fx.Graph | None = None
) -> ShardGraph:
    """A fresh `ShardGraph` over a copy of the captured graph.

    Args:
        source: another form of the captured graph with the same node names (its float64 form).
    """
    graph, _ = copy_graph(captured.graph if source is None else source)
    named = {node.name: node for node in graph.nodes}
    leaves = [_leaf(named[leaf.node], leaf, statements) for leaf in captured.leaves]
    made = ShardGraph(
        statements.mesh,
        graph,
        leaves,
        list(captured.results),
        statements.data_axes,
        statements.loss,
        statements.fast_random,
        statements.weighs,
        statements.step,
        statements.split,
    )
    for node, leaf in made.placeholders():
        if leaf.store:
            _unstore(graph, node)
    for key, stated in statements.values.items():
        for node in (captured.values[key], *captured.repeats.get(key, ())):
            _constrain_value(graph, named[node.name], key, stated)
    _constrain_outputs(made, statements)
    assign_stages(made)
    return made


def _leaf(node: fx.Node, leaf: Leaf, statements: Statements) -> Leaf:
    """The leaf as the spec stores it; its node gets what the spec states."""
    if leaf.name in statements.leaves:
        set_info(node, replace(info(node), stated=statements.leaves[leaf.name]))
    storage = statements.stores.get(leaf.name, Storage(()))
    own = tensor_of(node).dtype
    dtype, computes = (leaf.dtype, own) if leaf.computes == own else (own, None)
    return replace(
        leaf,
        dtype=dtype,
        computes=computes,
        store=storage.axes,
        splits=storage.splits,
        regather=storage.regather,
    )


def _after(node: fx.Node) -> fx.Node:
    """The first node after a node, placeholders skipped."""
    after = node.next
    while after.op == "placeholder":
        after = after.next
    return after


def add_constraint(
    graph: fx.Graph, node: fx.Node, stated: Stated | None, before: fx.Node | None = None
) -> fx.Node:
    """An identity that carries a stated layout, right after a node or before another one."""
    known = info(node)
    record = NodeInfo(known.value, known.module, known.source, stated=stated)
    place = before or _after(node)
    return Rewriter(graph).add(constrain, (node,), record=record, before=place)


def _unstore(graph: fx.Graph, leaf: fx.Node) -> None:
    """Split a stored parameter in two: as it lies at rest, and as it is used.

    The use begins at the first reader, so that no parameter is gathered before its time.
    """
    stated = info(leaf).stated
    set_info(leaf, replace(info(leaf), stated=None))
    first = next((node for node in graph.nodes if node in leaf.users), None)
    made = add_constraint(graph, leaf, stated, first)
    Rewriter(graph).redirect(leaf, made)


def _constrain_value(graph: fx.Graph, node: fx.Node, key: ValueKey, stated: Stated) -> None:
    """Lay out a module's output for all its readers, or its input for the module alone."""
    made = add_constraint(graph, node, stated)
    module, side, _ = key

    def reads(user: fx.Node) -> bool:
        where = info(user).module
        return side == "out" or where == module or where.startswith(module + ".")

    Rewriter(graph).redirect(node, made, reads)


def _constrain_outputs(graph: ShardGraph, statements: Statements) -> None:
    """Lay out the stated results."""
    done: list[fx.Node | None] = []
    for result, node in zip(graph.results, graph.result_nodes, strict=True):
        stated = statements.outputs.get(result.name) if result.kind is ResultKind.OUTPUT else None
        if node is None or stated is None:
            done.append(node)
            continue
        done.append(add_constraint(graph.graph, node, stated, graph.output))
    graph.output.args = (tuple(done),)
