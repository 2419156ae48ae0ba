"""Start the local processes of a job, watch them, and end them all when one fails.

Every process gets the environment that torchrun would give it, so the same program runs under
torchrun too. The supervisor hosts the rendezvous store; with one node it listens on the loopback
interface only, and so do the process groups. Workers die with the supervisor. With several nodes
one supervisor per node runs; they meet at the endpoint, and through the store each learns within
seconds that another node's job has failed or that its supervisor is gone.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from shardlang.runtime.errors import RunError
from shardlang.runtime.logs import Logs
from shardlang.runtime.nodes import Nodes
from shardlang.runtime.reports import Report, positions, read
from shardlang.runtime.signals import Signals
from shardlang.runtime.workers import Job, Worker, stop_all

__all__ = ["Job", "JobError", "launch", "launched", "this_command"]

POLL_S = 0.05
SETTLE_S = 1.0
"""After the first failure, how long the other ranks have to report theirs."""
AGREE_S = 10.0
"""After an exit without a report, how long rank 0 has to fail likewise and say why."""


class JobError(RunError):
    """The job ended because a rank failed.

    `rank` is the one that failed, `status` the exit status for the command line. `spoken` says that
    rank 0, which prints to the terminal, ended by itself in good order and has said why.
    """

    def __init__(self, report: Report, message: str, help: str) -> None:
        more = {"help": help, "about": report.about}
        super().__init__(report.code, message, notes=report.notes, **more)
        self.rank, self.status = report.rank, report.exit_status
        self.spoken = report.kind == "exit" and report.rank == 0


def launched() -> bool:
    """Whether this process is a worker already, of our own launcher or of torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(job: Job) -> None:
    """Run a job to its end.

    Raises:
        JobError: a rank failed; all others have been ended.
        KeyboardInterrupt: Ctrl-C; all workers have been ended, or have saved and ended.
        SystemExit: the same for SIGTERM, with status 143, and for a closed output, with 141.
        RunError: SH0610, the nodes did not meet; SH0601, the processes do not divide; SH0603, there
            is no place for the logs.
    """
    local = job.local
    meeting = Nodes(job.nodes, job.node, job.endpoint)
    with meeting as nodes, Logs(job.logs, job.failed) as logs, Signals(job.saves) as signals:
        workers: list[Worker] = []
        try:
            for i in range(local):
                workers.append(Worker(job, i, nodes.address, logs))
            failed = _watch(job, workers, nodes, logs.reports, signals)
            if failed is not None:
                nodes.announce(failed)
        finally:
            stop_all(workers, at_once=signals.count > 1)
        if failed is not None:
            raise _failure(failed, workers, logs)
        signals.raise_for(workers)


def _watch(
    job: Job, workers: list[Worker], nodes: Nodes, folder: Path, signals: Signals
) -> Report | None:
    """Wait until all nodes are done or one fails; the report of the failure."""
    deadline = time.monotonic() + job.timeout_s if job.timeout_s is not None else None
    while True:
        signals.check(workers, folder)
        running = [worker for worker in workers if worker.process.poll() is None]
        if any(worker.failure() for worker in workers):
            blamed = _blame(workers, folder)
            if blamed is not None and blamed.kind == "killed":
                signals.explain_death()
            lost = blamed is not None and blamed.kind in ("stuck", "peer")
            return (nodes.cause() if lost else None) or blamed
        elsewhere = nodes.failure(done=not running)
        if elsewhere is not None:
            return elsewhere
        if not running and nodes.all_done():
            return None
        if deadline is not None and time.monotonic() > deadline:
            message = f"is still running after {job.timeout_s:g} s"
            rank = running[0].rank if running else workers[0].rank
            return Report(rank, "stuck", message, code="SH0604", exit_status=1)
        time.sleep(POLL_S)


def _blame(workers: list[Worker], folder: Path) -> Report | None:
    """The report of the rank that failed first and by itself, once the others have reported."""
    _wait_for(workers, SETTLE_S)
    ended = _ended(workers, folder)
    if all(report.kind == "exit" for report in ended):
        _wait_for(workers[:1], AGREE_S)
        ended = _ended(workers, folder)
    order = ("killed", "error", "exit", "stuck", "peer")
    first = min(ended, key=lambda report: (order.index(report.kind), report.time_s), default=None)
    halted = next((worker.rank for worker in workers if worker.halted), None)
    if first is None or first.kind != "stuck" or halted is None:
        return first
    where = positions(folder).get(halted) or "no collective"
    message = f"was stopped by a signal, in {where}: rank {first.rank} {first.message}"
    return replace(first, rank=halted, message=message, help=_HALTED)


_HALTED = "look for what sends SIGSTOP: a debugger, a job control, a container that is frozen"


def _wait_for(workers: list[Worker], limit_s: float) -> None:
    """Wait until these workers have ended, or the time is up."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and any(w.process.poll() is None for w in workers):
        time.sleep(POLL_S)


def _ended(workers: list[Worker], folder: Path) -> list[Report]:
    """Why each worker that failed did so, in the order of the ranks."""
    by_rank = {report.rank: report for report in read(folder)}
    return [by_rank.get(w.rank) or found for w in workers if (found := w.failure())]


def _failure(report: Report, workers: list[Worker], logs: Logs) -> JobError:
    """The one message of a failed job; where it does not say all, with the logs of the ranks."""
    folder = logs.reports
    alone = any(other.message != report.message for other in _ended(workers, folder))
    message = _sentence(report, alone)
    worker = next((w for w in workers if w.rank == report.rank), None)
    help = report.help or _REMEDY.get(report.kind, "")
    if report.kind == "exit" and worker is not None and worker.tail():
        message += f": {worker.tail()}"
    others = {rank: name for rank, name in positions(folder).items() if rank != report.rank}
    if report.kind in ("stuck", "killed", "peer") and others:
        seen = list(others.items())[:4]
        at = ", ".join(f"rank {r} in {name or 'no collective'}" for r, name in seen)
        help = "; ".join(text for text in (help, f"last seen: {at}") if text)
    kept = "" if _is_persons(report) else logs.keep(report.rank, explained=bool(report.notes))
    notes = [*report.notes, *([kept] if kept else [])]
    return JobError(replace(report, notes=notes), message, help)


_REMEDY = {
    "error": "fix what it says; the other ranks were ended",
    "exit": "fix what made it end; the other ranks were ended",
    "killed": "look at the machine's memory and log; the other ranks were ended",
}
"""What to do about a failure that says nothing of it itself, by kind."""


def _is_persons(report: Report) -> bool:
    """Whether a rank was refused what the person has asked for: its message says all."""
    return report.kind == "error" and report.code != "SH0603"


def _sentence(report: Report, alone: bool) -> str:
    """The message; what the person did wrong is said without a rank if all ranks say it."""
    if report.kind == "gone" or (_is_persons(report) and not alone):
        return report.message
    verb = "failed: " if report.kind == "error" else ""
    return f"rank {report.rank} {verb}{report.message}"


def this_command() -> list[str]:
    """The command line that started this process, for workers that run the same."""
    return [sys.executable, "-m", "shardlang", *sys.argv[1:]]
