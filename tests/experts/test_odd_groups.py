"""Rows whose groups count from the end, or are none, between devices: as in the plain model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shardlang.api import Program
from shardlang.compiler.driver import compile_spec
from shardlang.ir.experts.strategies import Strategy
from shardlang.proof.report import TOLERANCE
from shardlang.rules.experts.local_routed import routed_rows_here
from shardlang.spec import load_spec_text

HERE = Path(__file__).parent


@pytest.mark.parametrize("split", ["ep", "ep(3)"])
@pytest.mark.parametrize(
    "model", ["negative(looked_up = true)", "negative(looked_up = false)", "capacity()"]
)
def test_they_lie_where_the_plain_model_finds_them(model: str, split: str) -> None:
    name, arguments = model.split("(")
    text = (
        f'mesh {{ ep = 2 as data }}\nmodel "odd_groups.py:{name}"({arguments}\n'
        f'input x : f32[10, 6] [ep, _]\ninput groups : i64[10] [ep]\nparam "**" [{split}, ...]'
    )
    spec, findings = load_spec_text(text, str(HERE / "spec.shard"))
    assert spec is not None, findings
    program = Program(compile_spec(spec))
    assert [found.taken for found in program.local.info.strategies] == [Strategy.ROUTE_ROWS]
    report = program.verify()
    assert report.ok, report.first
    assert report.gradients is not None
    assert max(report.gradients.values()) < TOLERANCE


def test_a_look_up_of_no_row_is_refused() -> None:
    """As without a route; a row of another group would be wrong without a word."""
    with pytest.raises(IndexError):
        routed_rows_here(torch.ones(3, 2), torch.tensor([3, 6]), 3, 6)
