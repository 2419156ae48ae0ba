"""Which gathers of parameters go as one call: those of a block, and what lies outside by size.

A block's parameters are gathered where the first of them is used. What lies outside of blocks, an
embedding and a head, goes together in the order of use, module by module, as long as it fits: a
parameter that comes in early takes memory until its own use, and its gradient waits for the others,
so one of more than 1 MiB comes early only where nothing else is gathered between.

The first block of a model is gathered in two calls, if it is large: nothing runs beside the first
gather of a step, nor beside the last reduction of its gradients, so both are to be small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import fx

from shardlang.cost.held import value_bytes
from shardlang.ir.blocks import blocks_of
from shardlang.ir.collective import Kind
from shardlang.ir.graph import ShardGraph, laid_out_from, reshard_of
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info, tensor_of
from shardlang.ir.program import apply_reshard
from shardlang.ir.reshard import Change

EARLY_BYTES = 2**20
"""The most that comes in early where a block is gathered before it is used."""

FIRST = 4
"""The first call of the first block has one part in so many of its bytes, or a little more."""

Key = tuple[int, tuple[Axis, ...], torch.dtype, str, int | None]
"""What gathers of one call have in common: how many came before, their axes, their dtype, what
storage splits, and the stage of a pipeline."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """One gather of a parameter, in the layout that another gather left or that it has at rest.

    Attributes:
        node: the reshard.
        leaf: the parameter.
        block: the block that it belongs to and is read in; empty outside of blocks.
        depth: how many gathers of the parameter come before.
        stage: of a pipeline, in which the parameter lies.
    """

    node: fx.Node
    leaf: Leaf
    block: str
    depth: int
    stage: int | None = None

    @property
    def module(self) -> str:
        """The parameter's own module."""
        return self.leaf.name.rpartition(".")[0]

    @property
    def key(self) -> Key:
        """What all gathers of a bucket share."""
        reshard = reshard_of(self.node)
        dtype = tensor_of(self.node).dtype
        return self.depth, reshard.axes, dtype, str(self.leaf.splits), self.stage

    @property
    def back(self) -> Kind | None:
        """What its gradient takes, if it has one."""
        node = self.node
        return reshard_of(node).adjoint.kind if info(node).differentiable else None


@dataclass(slots=True)
class Bucket:
    """Gathers that are sent as one call.

    Attributes:
        block: their block, or empty.
        filled: bytes of what they make.
        apart: whether a block is gathered behind the first of them.
    """

    block: str
    members: list[Gathered] = field(default_factory=list)
    filled: int = 0
    apart: bool = False

    def add(self, unit: list[Gathered]) -> None:
        """Take in more."""
        self.members += unit
        self.filled += sum(value_bytes(one.node) for one in unit)

    def takes(self, unit: list[Gathered], limit: int) -> bool:
        """Whether more may come in; what is large may where it is used right after the rest."""
        size = sum(value_bytes(one.node) for one in unit)
        if self.apart and size > EARLY_BYTES:
            return False
        if size > limit:
            return self.filled <= limit and not self.apart
        return self.filled + size <= limit


def gather_buckets(graph: ShardGraph, limit: int) -> list[Bucket]:
    """All buckets of gathers, those of depth 0 first."""
    streams: dict[Key, list[Gathered]] = {}
    for one in gathers_of_parameters(graph):
        streams.setdefault(one.key, []).append(one)
    found = [
        bucket
        for key in sorted(streams, key=lambda key: key[0])
        for same in _alike_backward(streams[key])
        for bucket in _filled(same, limit)
    ]
    return [bucket for bucket in found if len(bucket.members) > 1]


def _alike_backward(gathers: list[Gathered]) -> Iterator[list[Gathered]]:
    """The gathers whose gradients take the same; those without a gradient go with the first."""
    first = next((one.back for one in gathers if one.back is not None), None)
    kinds: dict[Kind | None, list[Gathered]] = {}
    for one in gathers:
        kinds.setdefault(one.back or first, []).append(one)
    yield from kinds.values()


def _filled(gathers: list[Gathered], limit: int) -> Iterator[Bucket]:
    """One bucket for each block, and as many outside as it takes."""
    blocks: dict[str, Bucket] = {}
    outside = Bucket("")
    for unit in _units(gathers):
        block = unit[0].block
        if block:
            blocks.setdefault(block, Bucket(block)).add(unit)
            outside.apart = bool(outside.members)
            continue
        if not outside.takes(unit, limit):
            yield outside
            outside = Bucket("")
        outside.add(unit)
    yield outside
    for place, bucket in enumerate(blocks.values()):
        yield from [bucket] if place else _in_two(bucket)


def _in_two(bucket: Bucket) -> Iterator[Bucket]:
    """A small part of a large block, which is used first, and the rest."""
    first, rest = Bucket(bucket.block), Bucket(bucket.block)
    for unit in _units(bucket.members):
        fills = bucket.filled <= 2 * EARLY_BYTES or first.filled * FIRST < bucket.filled
        (first if fills else rest).add(unit)
    yield first
    yield rest


def _units(gathers: list[Gathered]) -> Iterator[list[Gathered]]:
    """The gathers in their order; those of one module stand where its first one does."""
    units: dict[tuple[str, str], list[Gathered]] = {}
    for one in gathers:
        units.setdefault((one.block, one.module), []).append(one)
    yield from units.values()


def gathers_of_parameters(graph: ShardGraph) -> Iterator[Gathered]:
    """Every gather of a parameter that nothing but changes of layout has touched, in order."""
    leaves = {node: leaf for node, leaf in graph.placeholders() if leaf.kind is LeafKind.PARAM}
    blocks = blocks_of(leaves.values())
    known = {node: (node, leaf, 0) for node, leaf in leaves.items()}
    for node in graph.graph.nodes:
        source = laid_out_from(node)
        if source not in known:
            continue
        first, leaf, depth = known[source]
        gathers = node.target is apply_reshard and reshard_of(node).kind is Change.ALL_GATHER
        known[node] = first, leaf, depth + gathers
        if gathers and info(node).full_gather is None:
            block = blocks.get(leaf.name, "")
            block = block if _read_in(node, block) else ""
            yield Gathered(node, leaf, block, depth, info(first).stage)


def _read_in(node: fx.Node, block: str) -> bool:
    """Whether the first that reads a value in some layout belongs to a block."""
    reader = min(node.users, default=None)
    while reader is not None and laid_out_from(reader) is not None:
        reader = min(reader.users, default=None)
    module = info(reader).module if reader is not None else ""
    return f"{module}.".startswith(f"{block}.")
