"""fuse_collectives: send small things together.

The gradients of replicated parameters are all-reduced in buckets: the `vary` steps of parameters of
one axis set and dtype become one call, up to a size, in the order of their use, so that a bucket is
complete as soon as the layers it belongs to have done their backward.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from shardlang.cost.held import value_bytes
from shardlang.ir.graph import ShardGraph, add_step_node, step_of
from shardlang.ir.program import apply_step, apply_steps


@dataclass(frozen=True, slots=True)
class FuseCollectives:
    """Coalesce the gradient reductions of parameters into buckets of at most `bucket_bytes`."""

    name: str = "fuse_collectives"
    bucket_bytes: int = 25 * 2**20

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Fuse all parameter reductions."""
        groups: dict[Any, list[fx.Node]] = {}
        leaves = graph.leaf_of()
        for node in graph.graph.nodes:
            if (
                node.target is apply_step
                and step_of(node).kind == "vary"
                and node.args[0] in leaves
            ):
                key = (step_of(node).axes, node.meta["val"].dtype)
                groups.setdefault(key, []).append(node)
        for nodes in groups.values():
            for bucket in self.buckets(nodes):
                if len(bucket) > 1:
                    coalesce(graph, bucket)
        return graph

    def buckets(self, nodes: list[fx.Node]) -> Iterator[list[fx.Node]]:
        """Consecutive nodes, as many as fit."""
        bucket: list[fx.Node] = []
        filled = 0
        for node in nodes:
            size = value_bytes(node)
            if bucket and filled + size > self.bucket_bytes:
                yield bucket
                bucket, filled = [], 0
            bucket.append(node)
            filled += size
        yield bucket


def coalesce(graph: ShardGraph, nodes: list[fx.Node]) -> None:
    """Replace single steps on leaves by one call, placed where the first of them stands."""
    values = tuple(node.args[0] for node in nodes)
    steps = tuple(step_of(node) for node in nodes)
    name = f"{steps[0].kind}_bucket"
    made = add_step_node(graph.graph, apply_steps, (values, steps), name, nodes[0])
    made.meta.update(
        val=tuple(node.meta["val"] for node in nodes),
        layout=[node.meta["layout"] for node in nodes],
        diff=True,
        module="",
        source=nodes[0].meta.get("source", ""),
    )
    with graph.graph.inserting_before(nodes[0]):
        items = [graph.graph.call_function(operator.getitem, (made, i)) for i in range(len(nodes))]
    for item, node in zip(items, nodes, strict=True):
        item.meta.update(node.meta)
        node.replace_all_uses_with(item)
        graph.graph.erase_node(node)
