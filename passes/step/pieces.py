"""The parts of a step that are computed once for all microbatches, from leaves and totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from shardlang.ir.accumulated import Piece
from shardlang.ir.collective import Kind
from shardlang.ir.graph import is_item
from shardlang.ir.leaf import Leaf
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info, set_info
from shardlang.ir.step import collectives_of, is_collective
from shardlang.passes.step.over_microbatches import before_of, refused


@dataclass(frozen=True, slots=True)
class Pieces:
    """Where the parts come from.

    Attributes:
        graph: the whole step's.
        leaves: by the name of their node.
        axis: of the microbatches.
    """

    graph: fx.Graph
    leaves: Mapping[str, Leaf]
    axis: Axis

    def made_of(
        self, ends: Sequence[fx.Node], totals: Mapping[fx.Node, str], gives: Sequence[str]
    ) -> Piece:
        """The graph that makes some values of leaves and totals.

        Raises:
            ShardError: SH0409, it reads the rows of one microbatch beside a total, or draws.
        """
        graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
        needed, takes = before_of(ends, totals, _read), list[str]()
        for node in (n for n in self.graph.nodes if n in needed):
            leaf = self.leaves.get(node.name) if node.op == "placeholder" else None
            if leaf is None and node not in totals:
                continue
            takes.append(totals[node] if leaf is None else leaf.name)
            if leaf is not None and totals and self.axis in leaf.layout.sharded:
                what = f"`{leaf.name}` is read beside a sum over all rows of the batch"
                raise refused(node, what)
            made[node] = graph.placeholder(node.name)
            set_info(made[node], info(node))
        for node in (n for n in self.graph.nodes if n in needed and n not in made):
            made[node] = _copied(node, graph, made)
        graph.output(tuple(made[x] for x in ends))
        return Piece(graph, tuple(takes), tuple(gives))


def _copied(node: fx.Node, graph: fx.Graph, made: Mapping[fx.Node, fx.Node]) -> fx.Node:
    source = _given(node)
    if source is not None:
        return made[source]
    if info(node).random:
        raise refused(node, f"`{node.name}` draws beside a sum over all rows")
    copied = graph.node_copy(node, made.__getitem__)
    set_info(copied, info(node))
    return copied


def _read(node: fx.Node) -> Sequence[fx.Node]:
    source = _given(node)
    return node.all_input_nodes if source is None else [source]


def _given(node: fx.Node) -> fx.Node | None:
    """The value that a node hands on: of a bucket for which nothing is done to it."""
    bucket = node.all_input_nodes[0] if is_item(node) else node
    if bucket is node or not is_collective(bucket):
        return None
    index = node.args[1]
    assert isinstance(index, int), "an item has a number"
    source, collective = collectives_of(bucket)[index]
    return source if collective.kind is Kind.NOTHING else None
