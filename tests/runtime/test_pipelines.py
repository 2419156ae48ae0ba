"""A pipeline on four processes gives what one process gives, under every schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spawn import spawn
from staged import SPECS, program
from stages_on_ranks import trained as trained_alone

NAMES = [name for name in SPECS if name != "plain"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    out = tmp_path_factory.mktemp("ranks")
    return spawn("stages_on_ranks:everything", 4, out, 300, prepared=1, SCRATCH=str(out))


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return trained_alone(program("plain"))


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_one_process(ran: list[Any], alone: dict[str, Any], name: str) -> None:
    for rank in ran:
        mine = rank[name]
        for what in ("losses", "norms", "evaluated", "forward"):
            assert mine[what] == pytest.approx(alone[what], rel=1e-10), what
        for what in ("params", "buffers", "states"):
            assert mine[what].keys() == alone[what].keys()
            torch.testing.assert_close(mine[what], alone[what], rtol=1e-8, atol=1e-11)
        assert torch.equal(mine["draws"], alone["draws"])


def test_each_rank_holds_its_stages_alone(ran: list[Any], alone: dict[str, Any]) -> None:
    """But for numbers, which lie everywhere."""
    numbers = {f"layers.{i}.scale" for i in range(4)}
    held = [rank["1f1b"]["held"] - numbers for rank in ran]
    assert set.union(*held) | numbers == set(alone["params"])
    assert sum(map(len, held)) == len(alone["params"]) - 4
    assert all(f"layers.{i}.up.weight" in names for i, names in enumerate(held))


def test_a_call_of_the_module_is_refused(ran: list[Any]) -> None:
    assert [rank["refused"] for rank in ran] == ["SH0645"] * 4


def test_a_checkpoint_goes_on_under_another_depth(ran: list[Any], alone: dict[str, Any]) -> None:
    """From four stages to a V of two ranks, with the states of dropout and of the optimizer."""
    for rank in ran:
        assert rank["moved"] == pytest.approx(alone["losses"][: len(rank["moved"])], rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_peak_is_the_planned_one(ran: list[Any], name: str) -> None:
    """To the byte, on every rank: of the whole step, and of what follows the last action."""
    for rank in ran:
        planned, measured = rank[name]["peaks"]
        assert measured == planned
