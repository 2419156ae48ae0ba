"""A tied parameter that its later copy alone trains is updated in the stage that holds it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spawn import spawn
from tied_stages import ALONE, STAGES, model, program, trained

from shardlang.compiler.pipelined import pipelined


def test_the_copy_is_in_another_stage_and_it_alone_is_trained() -> None:
    step = pipelined(program(STAGES).compiled).step
    assert dict(step.tied) == {"table.weight@1": "table.weight"}
    gives = [set(piece.gives) for piece in step.reduces]
    assert "table.weight@1" in gives[1] and "table.weight" not in gives[0]


def test_steps_are_those_of_one_process(tmp_path: Path) -> None:
    alone = trained(program(ALONE))
    ranks = spawn("tied_stages:in_stages", 2, tmp_path, 200)
    assert not torch.equal(alone["table"], model().state_dict()["table.weight"])
    assert [rank["held"] for rank in ranks] == [54, 0]
    for rank in ranks:
        for what in ("losses", "norms"):
            assert rank[what] == pytest.approx(alone[what], rel=1e-12), what
        torch.testing.assert_close(rank["table"], alone["table"], rtol=1e-10, atol=1e-12)


def test_it_is_proven() -> None:
    report = program(STAGES).verify()
    assert report.ok, report
    assert report.accumulated and "table.weight" in report.accumulated
