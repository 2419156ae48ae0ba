"""Small values of one stage that the devices of all stages need: totals, buffers, scalars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shardlang.ir.collective import Collective, Kind
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import LeafKind, ResultKind
from shardlang.ir.mesh import Axis, Coord
from shardlang.ir.node import layout_of, tensor_of
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.runtime.collectives import connected
from shardlang.runtime.lower import Site, lower

Lies = Mapping[str, tuple[Layout, torch.dtype]]
"""How values lie, and their types."""


@dataclass(frozen=True, slots=True)
class Round:
    """What is sent round once a step, by name, in this order; a call of `sharing` for each.

    Attributes:
        totals: that the loss is made of.
        read: parameters that the loss is made of beside totals, such as those of a penalty.
        buffers: that a stage writes; behind the loss.
        scalars: gradients of parameters without dims, which lie on every device; behind the
            reductions of gradients.
    """

    totals: Lies
    read: Lies
    buffers: Lies
    scalars: Lies

    @staticmethod
    def of(step: StagedStep) -> Round:
        """What the stages of a step make of these."""
        totals, buffers, scalars = {}, {}, {}
        for stage in step.stages:
            for result, node in zip(stage.step.results, stage.step.returned[0], strict=True):
                lies = layout_of(node), tensor_of(node).dtype
                if result.kind is ResultKind.MUTATION:
                    buffers[result.name] = lies
                elif result.name not in stage.gives:
                    totals[result.name] = lies
        leaves = {leaf.name: leaf for leaf in step.whole.main.leaves}
        for leaf in (leaves[name] for piece in step.reduces for name in piece.gives):
            if not leaf.shape and leaf.tied is None:
                scalars[leaf.name] = leaf.layout, leaf.dtype
        taken = (leaves[name] for name in step.whole.finish.takes if name in leaves)
        read = {x.name: (x.at_rest, x.dtype) for x in taken if x.kind is LeafKind.PARAM}
        return Round(totals, read, buffers, scalars)


def sharing(layout: Layout, axis: Axis) -> Collective:
    """How all stages along an axis get a value of one: it is summed, and the others add zeros."""
    parts = replace(layout, partial=layout.partial | {axis})
    return Collective(Kind.ALL_REDUCE, (axis,), parts, layout)


class Shared:
    """Sends values of one stage round to all others, as `sharing` says."""

    def __init__(self, axis: Axis, site: Site) -> None:
        """Connect. Collective."""
        self._axis, self._site = axis, site
        site.of((axis,))

    def __call__(
        self,
        lies: Lies,
        mine: Mapping[str, Tensor],
        coord: Coord,
    ) -> dict[str, Tensor]:
        """All values, of which this device has some. Collective.

        Args:
            lies: how each of them lies, and its type; the same names on every rank.
            mine: those that a stage of this device has made.
        """
        found: dict[str, Tensor] = {}
        for name, (layout, dtype) in lies.items():
            shape, device = layout.local_shape(coord), self._site.device
            own = mine.get(name)
            given = torch.zeros(shape, dtype=dtype, device=device) if own is None else own
            label = f"share of {name} with all stages"
            move = lower(sharing(layout, self._axis), self._site, label)
            found[name] = connected(move)(given)
        return found
