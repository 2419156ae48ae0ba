"""Ranks compare the programs of their stages, and both ends of a link, before the first step."""

from __future__ import annotations

import pytest
from spawn import spawn

from shardlang.training.changes import STAGES, differences


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[str, str]]]:
    return spawn("other_stages:refused", 4, tmp_path_factory.mktemp("ranks"), 200, prepared=1)


def test_a_rank_with_another_program_of_its_stage_is_named(
    refused: list[dict[str, tuple[str, str]]],
) -> None:
    """On every rank, though the forward is the same on all."""
    assert len({rank["program"] for rank in refused}) == 1
    code, said = refused[0]["program"]
    assert code == "SH0602"
    where = "rank 3 (stage 1) holds another program of stage 1 than rank 2 (stage 1): line "
    assert said.startswith(where) and "tanh_backward" in said and "sigmoid_backward" in said


def test_both_ends_of_a_link_expect_the_same(refused: list[dict[str, tuple[str, str]]]) -> None:
    assert len({rank["link"] for rank in refused}) == 1
    code, said = refused[0]["link"]
    assert code == "SH0602"
    assert said.startswith("rank 3 (stage 1) holds other values on the link from rank 1 to rank 3")
    assert "than rank 1 (stage 0): line " in said and "microbatch 3: torch.float32" in said


def test_ranks_that_are_alike_train(refused: list[dict[str, tuple[str, str]]]) -> None:
    assert [rank["alike"] for rank in refused] == [("", "")] * 4


def test_a_resume_names_the_stages_that_have_changed() -> None:
    before, now = ({"program": "p", STAGES: ["a", x]} for x in "bc")
    assert differences(before, before) == ([], [])
    (said,) = differences(before, now)[1]
    assert said.startswith("the same spec gives another program of stage 1: ")
