"""The planned peak of a step of several microbatches, and its gradients, are the measured ones."""

from __future__ import annotations

from pathlib import Path

from accumulated_on_ranks import ALONE, fullest, peaks
from spawn import spawn


def test_on_one_device() -> None:
    for name, (planned, measured) in peaks(*ALONE).items():
        assert planned == measured == fullest(name)


def test_between_devices(tmp_path: Path) -> None:
    """The plan has the device that needs the most."""
    ranks = spawn("accumulated_on_ranks:peaks", 4, tmp_path, 500, prepared=1)
    for name in ranks[0]:
        found = [rank[name] for rank in ranks]
        assert [planned for planned, _ in found] == [measured for _, measured in found], name
        assert fullest(name) == max(planned for planned, _ in found), name
