"""A process that ends waits for gloo's threads: one that still frees a tensor aborts it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from spawn import spawn


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_no_thread_of_gloo_outlives_the_groups(tmp_path: Path) -> None:
    """Though the module, which makes calls over every group, is still held."""
    for before, after in spawn("leaving:counted", 4, tmp_path, prepared=1):
        assert before > 0
        assert after == 0
