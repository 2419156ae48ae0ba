"""What the device sends that sends the most in a step: its collectives and its transfers."""

from __future__ import annotations

from shardlang.plan.moments import Phase
from shardlang.plan.totals import Total, total_of
from shardlang.plan.types import CollectiveRow, Plan


def busiest(plan: Plan, phase: Phase | None = None) -> tuple[CollectiveRow, ...]:
    """Those of the rank that sends the most; without a pipeline all.

    Args:
        phase: of these alone.
    """
    rank = busiest_rank(plan)
    rows = plan.collectives if rank is None else _of_rank(plan, rank)
    return tuple(row for row in rows if phase in (None, row.phase))


def busiest_rank(plan: Plan) -> int | None:
    """The rank of a pipeline whose devices send the most to others, its transfers included."""
    if plan.pipeline is None:
        return None
    return max(range(len(plan.pipeline.schedule.ranks)), key=lambda rank: sent_by(plan, rank))


def sent_by(plan: Plan, rank: int) -> int:
    """Bytes that a device of a rank sends in a step."""
    assert plan.pipeline is not None, "without a pipeline there are no ranks of one"
    transfers = sum(row.step_bytes for row in plan.pipeline.sent_by(rank))
    return transfers + sum(row.bytes for row in _of_rank(plan, rank))


def transfers_by(plan: Plan, phase: Phase) -> Total:
    """What a device of the rank that sends the most sends to other stages in a phase."""
    rank = busiest_rank(plan)
    if plan.pipeline is None or rank is None:
        return Total()
    rows = [row for row in plan.pipeline.sent_by(rank) if row.phase is phase]
    return Total(sum(row.count for row in rows), sum(row.step_bytes for row in rows))


def sent(plan: Plan, phase: Phase | None = None) -> Total:
    """All that the device sends that sends the most, in a phase or in the whole step."""
    phases = Phase if phase is None else (phase,)
    transfers = (transfers_by(plan, one) for one in phases)
    return sum(transfers, total_of(busiest(plan, phase)))


def _of_rank(plan: Plan, rank: int) -> tuple[CollectiveRow, ...]:
    assert plan.pipeline is not None
    own = {row.stage for row in plan.pipeline.stages if row.rank == rank}
    return tuple(row for row in plan.collectives if row.stage is None or row.stage in own)
