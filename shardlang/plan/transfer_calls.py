"""What stages send to one another as rows beside those of the collectives."""

from __future__ import annotations

from collections.abc import Iterator

from shardlang.plan.stage_types import Sent, TransferRow
from shardlang.plan.types import CollectiveRow, Plan

TRANSFER = "transfer"
"""The op of such a row."""

_OF = {
    Sent.VALUE: "the value",
    Sent.GRADIENT: "the gradient",
    Sent.PARAMETER: "the tied parameter",
    Sent.PARAMETER_GRADIENT: "the gradient of the tied parameter",
}


def transfer_calls(plan: Plan) -> Iterator[CollectiveRow]:
    """A row for each transfer of a plan, over the axis of its pipeline; none without one.

    No program sends less: the stage that reads it has nothing of what is sent.
    """
    if plan.pipeline is not None:
        for row in plan.pipeline.transfers:
            yield _call(row, plan.pipeline.axis)


def _call(row: TransferRow, axis: str) -> CollectiveRow:
    return CollectiveRow(
        op=TRANSFER,
        axes=(axis,),
        phase=row.phase,
        module=row.module,
        tensors=(row.name,),
        count=row.count,
        bytes=row.step_bytes,
        bound=row.step_bytes,
        reason=f"stage {row.target} reads {_OF[row.what]} that stage {row.source} has",
        stage=row.source,
    )
