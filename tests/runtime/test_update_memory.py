"""The bytes that the plan says of an update are those that one takes on four processes."""

from __future__ import annotations

from pathlib import Path

from spawn import spawn
from update_memory_on_ranks import planned_peak


def test_an_update_takes_what_is_planned(tmp_path: Path) -> None:
    """What the optimizer keeps, the gradients, and the most that it takes beside them."""
    for found in spawn("update_memory_on_ranks:updates", 4, tmp_path, 300, prepared=1):
        assert {name: planned for name, (planned, _) in found.items()} == {
            name: measured for name, (_, measured) in found.items()
        }


def test_the_peak_of_a_step_may_be_in_its_update() -> None:
    """There gradients in f16 are copied in f32, more than a small batch takes."""
    update, peak = planned_peak("scaled")
    assert update == peak
    update, peak = planned_peak("dp")
    assert update < peak
