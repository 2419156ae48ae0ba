"""A rank of a loop of one's own that fails says why to the others, without a supervisor."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

from spawn import ROOT

from shardlang.runtime.changes import BY_HAND, LOADED, Due


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_others_end_with_the_reason_of_the_rank_that_fails() -> None:
    """Rank 1 raises in the person's own code, while rank 0 waits in a collective."""
    env = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'runtime'}", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", "import faults; faults.alone()"]
    ranks = [
        subprocess.Popen(
            command, env={**env, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for rank in range(2)
    ]
    failing, waiting = ranks[1].communicate(timeout=100)[1], ranks[1].wait()
    began = time.monotonic()
    said = ranks[0].communicate(timeout=100)[1]
    assert time.monotonic() - began < 15
    assert failing.rstrip().endswith("ValueError: label 7 of 5") and waiting == 1
    assert ranks[0].returncode == 1
    last = said.rstrip().splitlines()[-1]
    assert "RunError: rank 1 failed: ValueError: label 7 of 5 (faults.py:" in last
    assert "this rank lost it in forward all_reduce over a in layers.3" in last


def test_replicas_are_compared_a_few_times_and_after_changes() -> None:
    due = Due()
    compared = [call for call in range(1, 41) if _compared(due, 0)]
    assert compared == [1, 2, 4, 8, 16, 32]
    assert _compared(due, LOADED) and _compared(due, LOADED) and not _compared(due, 0)
    assert [change for change in range(1, 17) if _compared(due, BY_HAND)] == [1, 2, 4, 8, 16]


def test_a_comparison_that_fails_is_made_again() -> None:
    due = Due()
    assert all(due.at_call(0) for _ in range(5))
    due.done()
    assert not due.at_call(0)


def _compared(due: Due, changed: int) -> bool:
    wanted = due.at_call(changed)
    due.done()
    return wanted
