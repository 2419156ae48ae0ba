"""Sizes that nothing divides, on four processes: the losses of the plain model on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import short
import uneven
from spawn import spawn

from tests.commands import document

Ranks = list[dict[str, tuple[uneven.Losses, uneven.Losses]]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return spawn("uneven:losses", 4, tmp_path_factory.mktemp("uneven"), 240)


@pytest.mark.parametrize("name", uneven.SPECS)
def test_the_losses_are_those_of_one_process(name: str, ranks: Ranks) -> None:
    plain: Any = ranks[0][name][1]
    assert len(plain) == (len(short.ROWS) if "short" in name else uneven.STEPS)
    assert len(set(plain)) == len(plain)
    for rank in ranks:
        assert rank[name][0] == pytest.approx(plain, rel=1e-5, abs=0)


def test_short_batches_are_proven_at_the_declared_size() -> None:
    """The examples are proven in tests/examples."""
    found = document("verify", Path(__file__).with_name("short.shard"))
    assert found["ok"]
