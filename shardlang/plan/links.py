"""How long the collectives take at least: bytes over the bandwidth of the links."""

from __future__ import annotations

from collections.abc import Iterable

from shardlang.ir.mesh import BANDWIDTHS, Mesh
from shardlang.plan.types import CollectiveRow


def seconds_of(rows: Iterable[CollectiveRow], mesh: Mesh) -> float | None:
    """Seconds of all rows, one after the other; None where an axis has no known link.

    A collective over several axes runs at the pace of the slowest. Latency, overlap with compute
    and the sharing of links are left out.
    """
    total = 0.0
    for row in rows:
        pace = slowest(row.axes, mesh)
        if pace is None:
            return None
        total += row.bytes / pace
    return total


def slowest(axes: Iterable[str], mesh: Mesh) -> float | None:
    """The smallest bandwidth of some axes, None where one has no known link."""
    found = [BANDWIDTHS.get(mesh[name].link or "") for name in axes]
    known = [pace for pace in found if pace is not None]
    return min(known) if known and len(known) == len(found) else None
