"""One op of a propagated graph as a program of its own, split in any way, and really compiled."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import fx

from shardlang.compiler.build import build_graph
from shardlang.compiler.driver import Compiled, compile_spec
from shardlang.explain.alternatives import splits, without_axis
from shardlang.ir.graph import ShardGraph, reshard_nodes, reshards_of, result_layout, sharding_of
from shardlang.ir.leaf import Leaf, LeafKind, Result, ResultKind
from shardlang.ir.mesh import Axis
from shardlang.ir.node import NodeInfo, info, set_info, tensor_of
from shardlang.ir.program import LocalProgram
from shardlang.ir.reshard import Reshard
from shardlang.ir.rule import Sharding
from shardlang.passes.pipeline import PROPAGATE, REWRITE, run_passes
from shardlang.passes.propagate.bind_rules import bind_node
from shardlang.passes.propagate.choose import with_option
from shardlang.passes.propagate.flow import Flow
from shardlang.passes.rewrite.localize import to_program
from shardlang.spec import load_spec_text

PLANS = Path(__file__).parent.parent / "plan"


def propagated(text: str) -> tuple[Compiled, Flow]:
    """A spec text compiled, and its graph as it is before the rewrite."""
    spec, findings = load_spec_text(text, str(PLANS / "spec.shard"))
    assert spec is not None, findings
    done = compile_spec(spec)
    return done, Flow(run_passes(build_graph(done.captured, done.statements), PROPAGATE))


def ways(flow: Flow) -> Iterator[tuple[fx.Node, Axis, Sharding]]:
    """Every op, and every way to split it along every axis."""
    for node in flow.nodes:
        sharding = sharding_of(node)
        for axis in flow.graph.mesh.axes if node.op == "call_function" else ():
            if axis not in sharding.linear:
                bare = without_axis(sharding, axis)
                for _, option in splits(flow, node, sharding, axis):
                    yield node, axis, with_option(bare, option)


def alone(flow: Flow, node: fx.Node, sharding: Sharding, *, train: bool) -> LocalProgram:
    """The program of one op, split so: its operands are inputs that lie as they lie in the graph.

    The results are the outputs; with `train`, every operand that has a gradient gets it.
    """
    graph = fx.Graph()
    env = {o: _input(graph, o, train) for o in dict.fromkeys(flow.dims.operands[node])}
    made = graph.node_copy(node, lambda n: env[n])
    flows = train and info(node).differentiable
    set_info(made, replace(info(node), sharding=sharding, differentiable=flows, stated=None))
    results = list(_results(graph, made))
    graph.output(tuple(results))
    leaves = [
        Leaf(
            n.name,
            LeafKind.INPUT,
            n.name,
            tensor_of(n).dtype,
            result_layout(n),
            info(n).differentiable,
        )
        for n in env.values()
    ]
    named = [
        Result(f"out.{index}", ResultKind.OUTPUT, tensor_of(node).dtype, result_layout(node))
        for index, node in enumerate(results)
    ]
    one = ShardGraph(flow.graph.mesh, graph, leaves, named)
    for rewrite in REWRITE:
        one = rewrite.run(one)
    return to_program(one)


def _input(graph: fx.Graph, operand: fx.Node, train: bool) -> fx.Node:
    """An input that lies as an operand lies."""
    made = graph.placeholder(operand.name)
    set_info(
        made, NodeInfo(tensor_of(operand), differentiable=train and info(operand).differentiable)
    )
    bind_node(made)
    mine, lying = sharding_of(made), result_layout(operand)
    mine.factors.update({f"d{i}": dim for i, dim in enumerate(lying.dims)})
    mine.linear = dict.fromkeys(lying.partial, frozenset({0}))
    return made


def _results(graph: fx.Graph, made: fx.Node) -> Iterator[fx.Node]:
    """The tensors that an op gives."""
    value = info(made).value
    if not isinstance(value, (list, tuple)):
        yield made
        return
    for index, tensor in enumerate(value):
        if tensor is not None:
            item = graph.call_function(operator.getitem, (made, index))
            set_info(item, replace(info(made), value=tensor, sharding=None))
            yield item


def reshards_in(program: LocalProgram) -> list[tuple[fx.Node, Reshard]]:
    """The changes of layout of a program, with the values that they change."""
    return [pair for node in reshard_nodes(program.graph) for pair in reshards_of(node)]
