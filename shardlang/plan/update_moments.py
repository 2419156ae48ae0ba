"""The moments of the update behind a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shardlang.cost.composition import Kind
from shardlang.cost.heap import Heap
from shardlang.cost.update import UpdateCost
from shardlang.ir.mesh import Coord
from shardlang.plan.moments import Moment, Phase


def update_moments(
    update: UpdateCost, heap: Heap, coord: Coord, lies: Mapping[Kind, int]
) -> Iterator[Moment]:
    """One for each statement of the update, beside what lies there behind the backward.

    Args:
        heap: forward and backward.
        lies: the bytes of each kind that they leave.
    """
    state = {Kind.OPTIMIZER: update.state_bytes(coord)}
    for line in update.lines(coord, heap.gradient_types):
        held = {kind: lies.get(kind, 0) + line.held.get(kind, 0) for kind in Kind}
        yield Moment(Phase.UPDATE, line.module, line.name, held | state)
