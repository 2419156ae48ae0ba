"""How many microbatches a rank holds between forward and backward, under every schedule."""

from __future__ import annotations

import pytest

from shardlang.cost.pipeline.in_flight import in_flight
from shardlang.passes.schedules.dualpipe_v import dualpipe_v
from shardlang.passes.schedules.plain import gpipe, interleaved_1f1b, one_f_one_b
from shardlang.passes.schedules.zero_bubble import v_half, zb_h1, zbv

SIZES = [(2, 8), (4, 8), (4, 12), (8, 16)]


@pytest.mark.parametrize(("ranks", "count"), SIZES)
def test_one_stage_for_each_rank(ranks: int, count: int) -> None:
    assert in_flight(gpipe(ranks, count)) == (count,) * ranks
    assert in_flight(one_f_one_b(ranks, count)) == tuple(ranks - r for r in range(ranks))
    assert max(in_flight(zb_h1(ranks, count))) <= ranks


@pytest.mark.parametrize(("ranks", "count"), SIZES)
def test_two_stages_for_each_rank(ranks: int, count: int) -> None:
    """A stage is half of one of 1F1B, so twice as many of them are as much."""
    of_1f1b = 2 * max(in_flight(one_f_one_b(ranks, count)))
    assert max(in_flight(v_half(ranks, count))) <= max(of_1f1b // 2, 3)
    assert max(in_flight(zbv(ranks, count))) <= of_1f1b
    assert max(in_flight(dualpipe_v(ranks, count))) <= of_1f1b + 1
    more = ranks - 1
    assert max(in_flight(interleaved_1f1b(ranks, count))) <= of_1f1b + more
