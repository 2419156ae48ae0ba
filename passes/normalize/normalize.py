"""normalize: from what export traces to purely functional operators, in one tuple of passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from shardlang.ir.graph import ShardGraph
from shardlang.ir.leaf import ResultKind
from shardlang.ir.mesh import Mesh
from shardlang.ir.node import info, tensor_of
from shardlang.passes.invariants.traced import values_known
from shardlang.passes.normalize.drop_checks import DropChecks
from shardlang.passes.normalize.expand_vmaps import ExpandVmaps
from shardlang.passes.normalize.expose_groups import ExposeGroups
from shardlang.passes.normalize.expose_randomness import ExposeRandomness
from shardlang.passes.normalize.functionalize import Functionalize
from shardlang.passes.normalize.inline_regions import InlineRegions
from shardlang.passes.normalize.keep_draw_order import KeepDrawOrder
from shardlang.passes.normalize.note_draw_orders import NoteDrawOrders
from shardlang.passes.normalize.own_memory import lie_apart
from shardlang.passes.normalize.plain_draws import PlainDraws
from shardlang.passes.normalize.results import result_of
from shardlang.passes.normalize.simplify import Simplify
from shardlang.passes.run_passes import Pass, run_in_order

TRACED = (values_known,)
"""What holds of a traced graph from the beginning to the end."""

NORMALIZE: tuple[Pass, ...] = (
    InlineRegions(),
    DropChecks(),
    ExpandVmaps(),
    PlainDraws(),
    Functionalize(),
    ExposeRandomness(),
    ExposeGroups(),
    NoteDrawOrders(),
    Simplify(),
    KeepDrawOrder(),
)
"""Afterwards the graph has no submodules, no call that writes an operand, and no runtime checks.

Random ops draw in the order of the model, and what carries no gradient comes from `aten.detach`.
"""


@dataclass(frozen=True, slots=True)
class Normalized:
    """A normalized graph.

    Attributes:
        final: placeholder to final value, for each one that the program writes.
        checks: the model's lines of checks on data that were dropped.
    """

    graph: fx.Graph
    final: dict[fx.Node, fx.Node]
    checks: list[str]


def normalize(traced: fx.GraphModule, replaced: Mapping[str, Tensor] | None = None) -> Normalized:
    """A flat and functional copy of a traced graph, of few operators.

    Reads `value`, `module` and `source` of every node's record, and of placeholders `leaf`. The
    result's output node keeps its operands.

    Args:
        replaced: the buffers that the model replaces, by name, with what it puts in their places.

    Raises:
        PassError: a program that cannot be brought into this form.
    """
    graph = traced_graph(traced)
    lay = _Traced.of(graph)
    made = run_in_order(graph, NORMALIZE, TRACED)
    placeholders = {node.name: node for node in made.graph.find_nodes(op="placeholder")}
    pairs = list(zip(made.results, made.result_nodes, strict=True))
    final = {
        placeholders[result.name]: node
        for result, node in pairs
        if result.kind is ResultKind.MUTATION and node is not None
    }
    outputs = [node for result, node in pairs if result.kind is ResultKind.OUTPUT]
    made.output.args = (tuple(outputs),)
    _lie_apart(made.graph, final, lay, replaced or {})
    made.graph.lint()
    return Normalized(made.graph, final, made.info.checks)


@dataclass(frozen=True, slots=True)
class _Traced:
    """Tensors that lie in memory as those of the model do: of placeholders by name, and outputs."""

    leaves: dict[str, Tensor]
    outputs: list[Tensor | None]

    @staticmethod
    def of(graph: ShardGraph) -> _Traced:
        """Before any pass has changed the graph."""
        leaves = {node.name: tensor_of(node) for node in graph.graph.find_nodes(op="placeholder")}
        nodes = graph.result_nodes
        return _Traced(leaves, [None if node is None else tensor_of(node) for node in nodes])


def _lie_apart(
    graph: fx.Graph,
    final: dict[fx.Node, fx.Node],
    lay: _Traced,
    replaced: Mapping[str, Tensor],
) -> None:
    """Copy the outputs and the replaced buffers that would lie where those of the model do not."""
    leaves = {node: lay.leaves[node.name] for node in graph.find_nodes(op="placeholder")}
    output = graph.output_node()
    (given,) = output.args
    assert isinstance(given, tuple)
    values = dict(enumerate(given))
    outputs = [(i, x) for i, x in enumerate(lay.outputs) if x is not None]
    buffers = [(node, x) for node in final if (x := _new_of(node, replaced)) is not None]
    placed = [(values[i], x) for i, x in outputs] + [(final[node], x) for node, x in buffers]
    literals = (node for node in leaves if _is_literal(node))
    made = iter(lie_apart(graph, placed, leaves, {*final, *literals}))
    values.update((i, next(made)) for i, _ in outputs)
    final.update((node, next(made)) for node, _ in buffers)
    output.args = (tuple(values.values()),)


def _is_literal(node: fx.Node) -> bool:
    """Whether a placeholder is a `torch.tensor([...])` of the forward, by its name in a trace."""
    leaf = info(node).leaf
    name = "" if leaf is None else leaf.name.rpartition(".")[2]
    return name.startswith("lifted_tensor_")


def _new_of(node: fx.Node, replaced: Mapping[str, Tensor]) -> Tensor | None:
    """What the model puts in the place of a buffer, if it replaces it."""
    leaf = info(node).leaf
    names = () if leaf is None else (leaf.name, *leaf.aliases)
    return next((replaced[name] for name in names if name in replaced), None)


def traced_graph(traced: fx.GraphModule) -> ShardGraph:
    """A traced module as a graph for the passes; its outputs are named by their places."""
    (outputs,) = traced.graph.output_node().args
    assert isinstance(outputs, (list, tuple))
    results = [result_of(str(i), ResultKind.OUTPUT, one) for i, one in enumerate(outputs)]
    return ShardGraph(Mesh(()), traced.graph, [], results)
