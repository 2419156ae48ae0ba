"""Loading a directory takes a rank its own shards and one tensor: a small sample of `memory.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
from tests.hugging.memory import SLACK_BYTES, Sizes, measured


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_rank_holds_its_shards_and_one_tensor(tmp_path: Path) -> None:
    total, ranks = measured(tmp_path, Sizes(512, 4, 4000), 2, 10 * 2**20)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3
    for taken in ranks:
        assert taken.shards < total * 0.51 and taken.ok, taken
        assert total > taken.shards + taken.largest + SLACK_BYTES, "the sample can fail"
