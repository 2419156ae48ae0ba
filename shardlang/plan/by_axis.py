"""What the busiest device sends over each mesh axis in a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardlang.plan.busiest import busiest, transfers_by
from shardlang.plan.moments import Phase
from shardlang.plan.totals import Total
from shardlang.plan.types import Plan

TRANSFERS = "transfers"
"""What stands for what a stage of a pipeline sends to others, beside the ops of collectives."""


@dataclass(frozen=True, slots=True)
class AxisTotal:
    """Calls over one axis, or over several together.

    Attributes:
        axes: their names; a call over several is in none of the totals of one of them.
        ops: calls and bytes by op, and by `TRANSFERS`; those that are there alone.
    """

    axes: tuple[str, ...]
    ops: Mapping[str, Total]

    @property
    def together(self) -> Total:
        """All of them."""
        return sum(self.ops.values(), Total())

    def to_json(self) -> dict[str, object]:
        """The entry of the plan document."""
        ops = {op: {"count": one.count, "bytes": one.bytes} for op, one in self.ops.items()}
        whole = self.together
        return {"axes": list(self.axes), "ops": ops, "count": whole.count, "bytes": whole.bytes}


def by_axis(plan: Plan) -> tuple[AxisTotal, ...]:
    """What the device sends that sends the most, in the order of the mesh, one axis first."""
    found: dict[tuple[str, ...], dict[str, Total]] = {}
    for row in busiest(plan):
        ops = found.setdefault(row.axes, {})
        ops[row.op] = ops.get(row.op, Total()) + Total(row.count, row.bytes)
    sent = sum((transfers_by(plan, phase) for phase in Phase), Total())
    if plan.pipeline is not None and sent.count:
        found.setdefault((plan.pipeline.axis,), {})[TRANSFERS] = sent
    order = [axis.name for axis in plan.mesh.axes]

    def place(axes: tuple[str, ...]) -> tuple[int, list[int], tuple[str, ...]]:
        known = [order.index(name) for name in axes if name in order]
        return len(axes), known, axes

    return tuple(AxisTotal(axes, found[axes]) for axes in sorted(found, key=place))
