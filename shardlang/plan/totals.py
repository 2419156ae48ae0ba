"""Sums over the collectives of a plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shardlang.plan.moments import Phase
from shardlang.plan.types import OPS, CollectiveRow


@dataclass(frozen=True, slots=True)
class Total:
    """Calls, and bytes that the busiest device sends in them."""

    count: int = 0
    bytes: int = 0

    def __add__(self, other: Total) -> Total:
        return Total(self.count + other.count, self.bytes + other.bytes)


Totals = dict[Phase, dict[str, Total]]


def total_of(rows: Iterable[CollectiveRow]) -> Total:
    """The sum of some rows."""
    return sum((Total(row.count, row.bytes) for row in rows), Total())


def bound_of(rows: Iterable[CollectiveRow]) -> int:
    """Bytes that the busiest device must send at least for the changes of layout of some rows."""
    return sum(row.bound for row in rows)


def totals_of(rows: Iterable[CollectiveRow]) -> Totals:
    """Sums by phase and op; every phase and op is there."""
    totals: Totals = {phase: dict.fromkeys(OPS, Total()) for phase in Phase}
    for row in rows:
        totals[row.phase][row.op] += Total(row.count, row.bytes)
    return totals


def totals_json(totals: Totals) -> dict[str, dict[str, dict[str, int]]]:
    """The `totals` entry of the plan document."""
    return {
        phase: {op: {"count": total.count, "bytes": total.bytes} for op, total in ops.items()}
        for phase, ops in totals.items()
    }
