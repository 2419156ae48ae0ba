"""No program of the benchmark sends more than the better of XLA's two partitioners."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import shardlang
from shardlang.plan import plan_of
from shardlang.plan.moments import Phase
from shardlang.plan.totals import total_of
from tests.broad import sampled

GSPMD = Path(__file__).parent.parent.parent / "benchmarks" / "gspmd"
RECORDED = json.loads((GSPMD / "xla.json").read_text())
PROGRAMS = sorted((GSPMD / "programs").glob("*.shard"), key=lambda path: path.stem)


def test_every_program_is_recorded() -> None:
    assert [path.stem for path in PROGRAMS] == sorted(RECORDED)


@pytest.mark.parametrize("path", sampled(PROGRAMS, PROGRAMS[::3]), ids=lambda path: path.stem)
def test_bytes(path: Path) -> None:
    """Forward and backward, as `make bench-gspmd` counts them."""
    plan = plan_of(shardlang.compile(path).compiled)
    sent = sum(total_of(plan.select(phase=p)).bytes for p in (Phase.FORWARD, Phase.BACKWARD))
    assert sent <= min(RECORDED[path.stem].values())
