"""Processes of ours: forked, waited for, and ended by their own numbers, whatever happens."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from shardlang.runtime.reports import die_with_parent

POLL_S = 0.02
SETTLE_S = 1.0
"""After the first rank has failed, how long the others may take to say why they fail."""


def forked(work: Callable[[], None], log: Path) -> int:
    """The number of a new process that does the work, and writes what it has to say to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        die_with_parent(parent)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        work()
        status = 0
    except RankError as error:
        log.with_suffix(".traceback").write_text(str(error))
    except BaseException:
        log.with_suffix(".traceback").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def end(pid: int) -> None:
    """End a process of ours; its own children go with it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def said(log: Path) -> str:
    """The traceback of a process, or whatever else it left."""
    for file in (log.with_suffix(".traceback"), log):
        if file.exists() and file.read_text().strip():
            return file.read_text().strip()
    return ""


class RankError(Exception):
    """A rank failed or hangs; the message holds its traceback."""


def wait(ranks: dict[int, int], folder: Path, deadline: float) -> None:
    """Wait for all ranks, given by process. Raises RankError, once all have ended, if one fails."""
    failed: list[int] = []
    try:
        while ranks and time.monotonic() < deadline:
            time.sleep(POLL_S)
            failed += _failed(ranks)
            if failed:
                deadline = min(deadline, time.monotonic() + SETTLE_S)
    finally:
        late = sorted(ranks.values())
        for pid in ranks:
            end(pid)
    if failed or late:
        rank, what = (failed[0], "failed:") if failed else (late[0], "hangs in")
        raise RankError(f"rank {rank} {what}\n{said(folder / str(rank))}")


def _failed(ranks: dict[int, int]) -> list[int]:
    """Ranks that have ended badly since; all that have ended are taken out."""
    ended = [(pid, status) for pid in ranks if (status := status_of(pid)) is not None]
    numbers = {pid: ranks.pop(pid) for pid, _ in ended}
    return [numbers[pid] for pid, status in ended if status]


def status_of(pid: int) -> int | None:
    """The status of a process that has ended."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return status if found else None
