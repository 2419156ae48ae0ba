"""The planned peak of a step of several microbatches, and its gradients, are the measured ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from accumulated_on_ranks import ALONE, APART, FEW, fullest, peaks
from spawn import in_two_jobs, spawn

from tests.broad import sampled

Ran = Callable[[str], list[Any]]


@pytest.fixture(scope="module")
def ran_with(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Every rank of the job that runs a spec."""

    def run(names: list[str]) -> list[Any]:
        job, out = "accumulated_on_ranks:peaks_on_ranks", tmp_path_factory.mktemp("ranks")
        return spawn(job, 4, out, 500, prepared=1, NAMES="; ".join(names))

    return in_two_jobs(APART, FEW, run)


@pytest.mark.parametrize("name", ALONE)
def test_on_one_device(name: str) -> None:
    planned, measured = peaks(name)
    assert planned == measured == fullest(name)


@pytest.mark.parametrize("name", sampled(APART, FEW))
def test_between_devices(name: str, ran_with: Ran) -> None:
    """The plan has the device that needs the most."""
    found = [rank[name] for rank in ran_with(name)]
    assert [planned for planned, _ in found] == [measured for _, measured in found]
    assert fullest(name) == max(planned for planned, _ in found)
