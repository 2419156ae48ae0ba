"""fuse_collectives: send small things together.

The gradients of replicated parameters are all-reduced in buckets: the `vary` reshards of parameters
of one axis set and dtype become one call, up to a size, in the order of their use, so that a bucket
is complete as soon as the layers it belongs to have done their backward. A bucket holds no more
than a part of all, so that most are sent while the backward goes on. A large gradient goes alone,
since it can be summed where it lies, and would be copied to a bucket. The gathers of parameters
become one call for each block of the model (`gather_buckets`), which stands where the first of them
stood; its adjoint is one reduce-scatter. Before all, reshards over parts of
one axis become one (`join_parts`).
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
from shardlang.passes.rewrite.gather_buckets import gather_buckets
from shardlang.passes.rewrite.join_parts import join_parts

PARTS = 6
"""Reductions over one group are sent in so many parts at least, but for small ones."""

SMALL_BYTES = 2**20
"""What is sent as one call in any case."""

LARGE = 8
"""A gradient of one part in so many of a bucket, or more, is sent alone."""


@dataclass(frozen=True, slots=True)
class FuseCollectives:
    """Coalesce the reductions and gathers of parameters.

    Attributes:
        bucket_bytes: the most that a bucket of reductions holds, or one of gathers outside of the
            model's blocks.
    """

    name: str = "fuse_collectives"
    bucket_bytes: int = 25 * 2**20
    establishes: ClassVar[tuple[Invariant, ...]] = (buckets_alike,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Fuse the reductions of parameters, then their gathers."""
        join_parts(graph)
        self.fuse_reductions(graph)
        for bucket in gather_buckets(graph, self.bucket_bytes):
            nodes = [one.node for one in bucket.members]
            for node in nodes[1:]:
                raise_sources(node, nodes[0])
            coalesce(graph, nodes, bucket.block)
        return graph

    def fuse_reductions(self, graph: ShardGraph) -> None:
        """Send the gradients of replicated parameters together."""
        groups: dict[tuple[tuple[Axis, ...], torch.dtype, int | None], list[fx.Node]] = {}
        leaves = {node for node, _ in graph.placeholders()}
        for node in graph.graph.nodes:
            if (
                node.target is apply_reshard
                and reshard_of(node).kind is Change.VARY
                and node.args[0] in leaves
            ):
                stage = info(node.all_input_nodes[0]).stage
                key = (reshard_of(node).axes, tensor_of(node).dtype, stage)
                groups.setdefault(key, []).append(node)
        for nodes in groups.values():
            for bucket in self.buckets(nodes):
                if len(bucket) > 1:
                    coalesce(graph, bucket)

    def buckets(self, nodes: list[fx.Node]) -> Iterator[list[fx.Node]]:
        """Consecutive nodes, as many as fit; large ones by themselves."""
        bucket: list[fx.Node] = []
        sizes, filled = [value_bytes(node) for node in nodes], 0
        limit = min(self.bucket_bytes, max(SMALL_BYTES, sum(sizes) // PARTS))
        for node, size in zip(nodes, sizes, strict=True):
            if size >= max(SMALL_BYTES, limit // LARGE):
                yield [node]
                continue
            if bucket and filled + size > limit:
                yield bucket
                bucket, filled = [], 0
            bucket.append(node)
            filled += size
        yield bucket


def raise_sources(node: fx.Node, anchor: fx.Node) -> None:
    """Move what a node reads before an anchor: changes of layout of parameters alone."""
    for source in node.all_input_nodes:
        if source.op != "placeholder" and anchor < source:
            raise_sources(source, anchor)
            anchor.prepend(source)


def coalesce(graph: ShardGraph, nodes: list[fx.Node], module: str = "") -> None:
    """Replace single reshards of parameters by one call, placed where the first of them stands."""
    values = tuple(node.args[0] for node in nodes)
    reshards = tuple(reshard_of(node) for node in nodes)
    name = f"{reshards[0].kind}_bucket"
    record = NodeInfo(
        value=tuple(tensor_of(node) for node in nodes),
        module=module,
        source=info(nodes[0]).source,
        differentiable=any(info(node).differentiable for node in nodes),
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
