"""Seconds over links."""

from __future__ import annotations

import pytest

from shardlang.cost.links import seconds_of, slowest
from shardlang.ir.mesh import Axis, Mesh

MESH = Mesh((Axis("dp", 2, "ethernet"), Axis("tp", 4, "nvlink"), Axis("ep", 2)))


def test_calls_follow_one_another_each_at_the_pace_of_its_slowest_link() -> None:
    """450 GB/s within a machine, 12.5 GB/s between machines."""
    calls = [(("tp",), 900_000_000), (("dp", "tp"), 25_000_000), (("dp",), 12_500_000)]
    assert seconds_of(calls, MESH) == pytest.approx(0.002 + 0.002 + 0.001)
    assert seconds_of([], MESH) == 0.0


def test_nothing_is_said_of_links_that_are_not_known() -> None:
    assert slowest(("ep", "tp"), MESH) is None
    assert seconds_of([(("tp",), 1), (("ep",), 1)], MESH) is None
