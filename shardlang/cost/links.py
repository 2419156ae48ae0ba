"""How long the collectives take at least: bytes over the bandwidth of the links."""

from __future__ import annotations

from collections.abc import Iterable

from shardlang.ir.mesh import BANDWIDTHS, Mesh

Sent = tuple[Iterable[str], int]
"""The names of the axes that a call spans, and the bytes that the busiest device sends in it."""


def seconds_of(calls: Iterable[Sent], mesh: Mesh) -> float | None:
    """Seconds of all calls, one after the other; None where an axis has no known link.

    A call over several axes runs at the pace of the slowest. Latency, overlap with compute and the
    sharing of links are left out.
    """
    total = 0.0
    for axes, sent in calls:
        pace = slowest(axes, mesh)
        if pace is None:
            return None
        total += sent / pace
    return total


def slowest(axes: Iterable[str], mesh: Mesh) -> float | None:
    """The smallest bandwidth of some axes, in bytes a second; None where a link is not known."""
    found = [BANDWIDTHS.get(mesh.named([name])[0].link or "") for name in axes]
    known = [pace for pace in found if pace is not None]
    return min(known) if known and len(known) == len(found) else None
