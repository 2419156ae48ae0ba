"""The plan as the JSON document that the command line prints."""

from __future__ import annotations

from shardlang.plan.busiest import busiest
from shardlang.plan.by_axis import by_axis
from shardlang.plan.moments import Phase
from shardlang.plan.totals import bound_of, totals_json, totals_of
from shardlang.plan.types import Plan


def plan_document(plan: Plan) -> dict[str, object]:
    """`mesh`, `devices`, `tensors`, `collectives`, their `stretches` and `totals`, and so on."""
    return {
        "mesh": {axis.name: axis.size for axis in plan.mesh.whole.axes},
        "devices": plan.mesh.devices,
        "tensors": [row.to_json() for row in plan.tensors],
        "collectives": [row.to_json() for row in plan.collectives],
        "stretches": [part.to_json() for part in plan.stretches],
        "totals": totals_json(totals_of(busiest(plan))),
        "axes": [one.to_json() for one in by_axis(plan)],
        "bound": {phase: bound_of(busiest(plan, phase)) for phase in Phase},
        "memory": plan.memory.to_json(),
        "groups": [group.to_json() for group in plan.groups],
        "stages": [] if plan.pipeline is None else plan.pipeline.stages_json(),
        "transfers": [row.to_json() for row in plan.pipeline.transfers] if plan.pipeline else [],
        "bubble": None if plan.pipeline is None else plan.pipeline.bubble.to_json(),
        "recompute": None if plan.recomputed is None else plan.recomputed.to_json(),
    }
