"""place_storage: split stored parameters further at rest, minor to their own layout.

Storage takes no part in propagation: the parameter is gathered to its layout before its first use,
whose backward is the reduce-scatter of its gradient (ZeRO-3 and FSDP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from shardlang.ir.dim_layout import DimLayout, all_shards_nonempty
from shardlang.ir.factor import Factor
from shardlang.ir.graph import ShardGraph, constrain, result_layout, sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf
from shardlang.ir.mesh import Axis
from shardlang.ir.origin import Origin, Reason
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.shardings import storage_kept


@dataclass(frozen=True, slots=True)
class PlaceStorage:
    """Give every stored parameter its layout at rest."""

    name: str = "place_storage"
    establishes: ClassVar[tuple[Invariant, ...]] = (storage_kept,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Place all stored parameters."""
        for node, leaf in graph.placeholders():
            if leaf.store:
                place(node, leaf)
        return graph


def place(node: fx.Node, leaf: Leaf) -> None:
    """Lay a leaf out at rest: the layout of its use, split over the storage axes as well."""
    users = [user for user in node.users if user.target is constrain]
    used = result_layout(users[0]) if users else result_layout(node)
    rest = stored_layout(used, [axis for axis in leaf.store if axis not in used.sharded])
    sharding = sharding_of(node)
    sharding.factors = {f"d{i}": dim for i, dim in enumerate(rest.dims)}
    reasons = sharding_of(users[0] if users else node).origins
    stored = Origin(Reason.STORED, leaf.name)
    sharding.origins = {
        axis: reasons.get(axis, stored) if axis in used.sharded else stored for axis in rest.sharded
    }


def stored_layout(layout: Layout, axes: Sequence[Axis]) -> Layout:
    """`layout` split over `axes` too: on the largest dim that divides, else the largest that can.

    A tensor with no dim that has an index for every device stays as it is.
    """
    if not axes or not layout.dims:
        return layout
    candidates = []
    for place_, dim in enumerate(layout.dims):
        split = split_further(dim, tuple(axes))
        if split is not None and all_shards_nonempty(split):
            candidates.append((not split.even, -dim.max_local_size(), place_, split))
    if not candidates:
        return stored_layout(layout, axes[:-1])
    _, _, place_, split = min(candidates, key=lambda c: c[:3])
    return layout.replaced(place_, split)


def split_further(dim: DimLayout, axes: tuple[Axis, ...]) -> DimLayout | None:
    """The dim with `axes` as the minor-most of its split; None for structured dims that cannot."""
    blocks = []
    for block in dim.blocks:
        where = max((i for i, f in enumerate(block) if f.axes), default=0)
        factor = block[where]
        blocks.append(
            (*block[:where], Factor(factor.size, factor.axes + axes), *block[where + 1 :])
        )
    return DimLayout(tuple(blocks))
