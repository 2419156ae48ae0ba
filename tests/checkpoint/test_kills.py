"""A rank that is killed, once; `python -m tests.checkpoint.kills` does so many times."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoint.kills import differences, killed


def test_a_killed_run_goes_on_with_the_very_losses(tmp_path: Path) -> None:
    broken, straight = killed(tmp_path, times=1)
    assert broken.kills == 1
    assert differences(broken, straight) == []
