"""Every reshard on real gloo process groups, forward and backward, against exact arithmetic."""

from __future__ import annotations

from typing import Any

import cases as known
import pytest
from spawn import spawn

SIZES = (2, 4)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """The results of every rank, by number of processes."""
    return {n: spawn("on_ranks:everything", n, tmp_path_factory.mktemp(f"r{n}")) for n in SIZES}


NUMBERED = [(n, i, case) for n in SIZES for i, case in enumerate(known.cases(n))]


@pytest.mark.parametrize(("n", "i", "case"), NUMBERED, ids=[str(c) for _, _, c in NUMBERED])
def test_step(ran: dict[int, list[Any]], n: int, i: int, case: known.Case) -> None:
    found = [rank["reshards"][i] for rank in ran[n]]
    known.check(case.reshard.dst, case.mesh, [y for y, _ in found], 1)
    known.check(case.reshard.src, case.mesh, [grad for _, grad in found], 2, dual=True)


@pytest.mark.parametrize("n", SIZES)
def test_steps_sent_together_do_what_they_do_alone(ran: dict[int, list[Any]], n: int) -> None:
    for k, (mesh, reshards) in enumerate(known.buckets(n)):
        for j, reshard in enumerate(reshards):
            found = [rank["buckets"][k][j] for rank in ran[n]]
            known.check(reshard.dst, mesh, [y for y, _ in found], 1)
            if j == 1:
                assert all(grad is None for _, grad in found)
            else:
                known.check(reshard.src, mesh, [grad for _, grad in found], 2, dual=True)


@pytest.mark.parametrize("n", SIZES)
def test_other_types_and_extremes(ran: dict[int, list[Any]], n: int) -> None:
    for rank, found in enumerate(each["types"] for each in ran[n]):
        assert found.pop("max").tolist() == [i * n - n for i in range(n)]
        assert found.pop("min").tolist() == [i - n for i in range(n)]
        for name, (gathered, total, mine) in found.items():
            assert gathered.tolist() == [i % 2 for i in range(n)], name
            expected = 1 if name == "torch.bool" else n
            assert total.tolist() == [expected] * n, name
            assert mine.tolist() == [expected], (name, rank)


@pytest.mark.parametrize("n", SIZES)
def test_calls_of_every_group_wait_as_long_as_was_said(ran: dict[int, list[Any]], n: int) -> None:
    for found in (each["limits"] for each in ran[n]):
        assert found and {limit for limits in found.values() for limit in limits} == {known.LIMIT_S}
