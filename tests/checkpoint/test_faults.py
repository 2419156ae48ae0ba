"""Faults of a run on two processes, each made for real: what is left, and what is said."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.checkpoint.kills import SPEC
from tests.runtime.forking import Popen


def run(
    folder: Path, steps: int, *more: str, when: Callable[[Popen, Path], None] | None = None
) -> tuple[int, list[dict[str, object]], str]:
    """Status, lines and messages of a run on two processes.

    Args:
        when: called with the supervisor and the folder of the ranks' process ids.
    """
    (folder / "spec.shard").write_text(SPEC)
    pids = Path(tempfile.mkdtemp(dir=folder))
    command = [
        sys.executable, "-m", "shardlang", "run", str(folder / "spec.shard"),
        "--steps", str(steps), "--out", str(folder / "out"), *more,
    ]  # fmt: skip
    env = {**os.environ, "PIDS": str(pids), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Popen(command, env, stdout=out, stderr=err, start_new_session=True)
        if when is not None:
            acting = threading.Thread(target=when, args=(process, pids))
            acting.start()
        status = process.wait(90)
        if when is not None:
            acting.join()
        out.seek(0)
        err.seek(0)
        lines = [json.loads(line) for line in out.read().decode().splitlines()]
        return status, lines, err.read().decode()


def saved(folder: Path, count: int = 1) -> None:
    """Wait for checkpoints."""
    end = time.monotonic() + 60
    while len(list((folder / "out/checkpoints").glob("step-*"))) < count:
        assert time.monotonic() < end
        time.sleep(0.01)


def stepped_again(folder: Path) -> None:
    """Wait for a step of the run that has begun again."""
    end = time.monotonic() + 60
    while not re.search(r'"event": "resumed".*\n.*\n', (folder / "out/log.jsonl").read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)


def pid_of(pids: Path, rank: int) -> int:
    """The process of a rank, which writes its number when it begins."""
    while not (said := (pids / str(rank)).read_text()):
        time.sleep(0.01)
    return int(said)


def test_a_killed_rank_restarts_the_run_and_sigterm_ends_it_well(tmp_path: Path) -> None:
    """`--max-restarts 1`: the killed run begins again by itself; a scheduler's SIGTERM saves."""

    def act(process: Popen, pids: Path) -> None:
        saved(tmp_path)
        os.kill(pid_of(pids, 1), signal.SIGKILL)
        stepped_again(tmp_path)
        process.send_signal(signal.SIGTERM)

    status, lines, errors = run(tmp_path, 100_000, "--max-restarts", "1", when=act)
    assert status == 0, errors
    assert (
        "rank 1 was killed by signal 9 (SIGKILL); begins again from the last checkpoint" in errors
    )
    summary = lines[-1]["summary"]
    assert isinstance(summary, dict) and summary["interrupted"]
    last = [int(str(line["step"])) for line in lines if "step" in line][-1]
    assert summary["checkpoint"] == last
    status, lines, errors = run(tmp_path, last + 2, "--resume")
    assert (status, [line.get("step") for line in lines[:2]]) == (0, [last + 1, last + 2]), errors


def test_a_stopped_rank_is_named_with_the_collective_and_the_line(tmp_path: Path) -> None:
    def act(process: Popen, pids: Path) -> None:
        saved(tmp_path)
        os.kill(pid_of(pids, 1), signal.SIGSTOP)

    status, _, errors = run(tmp_path, 100_000, "--timeout", "3", when=act)
    said = " ".join(errors.split())
    assert status == 1 and "error[SH0604]: rank 1 was stopped by a signal, in " in said
    assert "rank 0 waited too long in " in said
    assert "look for what sends SIGSTOP" in said
    assert re.search(r"the last checkpoint is that of step \d+: go on from there", said)


def test_restarts_need_a_folder() -> None:
    from tests.commands import shardlang

    status, _, errors = shardlang("run", "none.shard", "--max-restarts", "1")
    assert status == 2 and "needs `--out FOLDER`" in errors
