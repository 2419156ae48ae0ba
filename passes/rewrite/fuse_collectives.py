"""fuse_collectives: send small things together.

The gradients of replicated parameters are all-reduced in buckets: the `vary` reshards of parameters
of one axis set and dtype become one call, up to a size, in the order of their use, so that a bucket
is complete as soon as the layers it belongs to have done their backward.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from shardlang.cost.held import value_bytes
from shardlang.ir.graph import ShardGraph, reshard_of
from shardlang.ir.mesh import Axis
from shardlang.ir.node import NodeInfo, info, layout_of, tensor_of
from shardlang.ir.program import apply_reshard, apply_reshards
from shardlang.ir.reshard import Change
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.buckets import buckets_alike
from shardlang.passes.invariants.invariant import Invariant


@dataclass(frozen=True, slots=True)
class FuseCollectives:
    """Coalesce the gradient reductions of parameters into buckets of at most `bucket_bytes`."""

    name: str = "fuse_collectives"
    bucket_bytes: int = 25 * 2**20
    establishes: ClassVar[tuple[Invariant, ...]] = (buckets_alike,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Fuse all parameter reductions."""
        groups: dict[tuple[tuple[Axis, ...], torch.dtype], list[fx.Node]] = {}
        leaves = {node for node, _ in graph.placeholders()}
        for node in graph.graph.nodes:
            if (
                node.target is apply_reshard
                and reshard_of(node).kind is Change.VARY
                and node.args[0] in leaves
            ):
                key = (reshard_of(node).axes, tensor_of(node).dtype)
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
    """Replace single reshards on leaves by one call, placed where the first of them stands."""
    values = tuple(node.args[0] for node in nodes)
    reshards = tuple(reshard_of(node) for node in nodes)
    name = f"{reshards[0].kind}_bucket"
    record = NodeInfo(
        value=tuple(tensor_of(node) for node in nodes),
        source=info(nodes[0]).source,
        differentiable=True,
        layout=tuple(layout_of(node) for node in nodes),
    )
    edit, first = Rewriter(graph.graph), nodes[0]
    made = edit.add(apply_reshards, (values, reshards), record=record, before=first, name=name)
    items = [
        edit.add(operator.getitem, (made, i), record=info(node), before=first)
        for i, node in enumerate(nodes)
    ]
    for item, node in zip(items, nodes, strict=True):
        edit.replace(node, item)
