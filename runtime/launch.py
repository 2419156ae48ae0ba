"""Start the local processes of a job, watch them, and end them all when one fails.

Every process gets the environment that torchrun would give it, so the same program runs under
torchrun too. The supervisor hosts the rendezvous store; with one node it listens on the loopback
interface only, and so do the process groups. Workers die with the supervisor. With several nodes
one supervisor per node runs; they meet at the endpoint, and through the store each learns within
seconds that another node's job has failed or that its supervisor is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardlang.runtime.errors import RunError
from shardlang.runtime.nodes import Nodes
from shardlang.runtime.reports import FOLDER, Report, positions, read

POLL_S = 0.05
SETTLE_S = 1.0
"""After the first failure, how long the other ranks have to report theirs."""
AGREE_S = 10.0
"""After an exit without a report, how long rank 0 has to fail likewise and say why."""
GRACE_S = 5.0
"""Between SIGTERM and SIGKILL."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to start on this node.

    Attributes:
        command: the command line of every worker.
        processes: number of processes of the whole job.
        device: `cpu` or `cuda`.
        nodes: number of nodes, which share the processes evenly.
        node: this node's number.
        endpoint: `host:port` of node 0, for several nodes.
        timeout_s: end the job after this time; None for never.
    """

    command: Sequence[str]
    processes: int
    device: str = "cpu"
    nodes: int = 1
    node: int = 0
    endpoint: str = ""
    timeout_s: float | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def local(self) -> int:
        """Number of processes on this node."""
        if self.processes % self.nodes:
            raise RunError(
                "SH0601", f"{self.processes} processes do not divide over {self.nodes} nodes",
                help="choose a number of nodes that divides the number of devices",
            )  # fmt: skip
        return self.processes // self.nodes


class JobError(RunError):
    """The job ended because a rank failed.

    `status` is the exit status for the command line. `spoken` says that rank 0, which prints to the
    terminal, ended by itself in good order and has said why.
    """

    def __init__(self, report: Report, message: str, help: str) -> None:
        super().__init__(report.code, message, help=help)
        self.status = report.exit_status
        self.spoken = report.kind == "exit" and report.rank == 0


def launched() -> bool:
    """Whether this process is a worker already, of our own launcher or of torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(job: Job) -> None:
    """Run a job to its end.

    Raises:
        JobError: a rank failed; all others have been ended.
        KeyboardInterrupt: Ctrl-C; all workers have been ended.
        RunError: SH0610, the nodes did not meet; SH0601, the processes do not divide.
    """
    local = job.local
    meeting = Nodes(job.nodes, job.node, job.endpoint)
    scratch = tempfile.TemporaryDirectory(prefix="shardlang-")
    with meeting as nodes, scratch as name, _Signals() as signals:
        folder = Path(name)
        workers: list[_Worker] = []
        try:
            for i in range(local):
                workers.append(_Worker(job, i, nodes.address, folder))
            failed = _watch(job, workers, nodes, folder, signals)
            if failed is not None:
                nodes.announce(failed)
        finally:
            _stop(workers)
        if failed is not None:
            raise _failure(failed, workers, folder)


class _Signals:
    """Ctrl-C and SIGTERM, kept until the supervisor looks: nothing is cut off half-way."""

    def __init__(self) -> None:
        self._seen: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._keep)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _keep(self, number: int, frame: object) -> None:
        self._seen = number

    def check(self) -> None:
        """Raise what a signal that has come means."""
        if self._seen == signal.SIGINT:
            raise KeyboardInterrupt
        if self._seen is not None:
            raise SystemExit(128 + self._seen)


class _Worker:
    """One process of the job."""

    def __init__(self, job: Job, local_rank: int, address: tuple[str, int], folder: Path) -> None:
        self.rank = job.node * job.local + local_rank
        self.log = folder / f"{self.rank}.log"
        quiet = self.rank != 0
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                list(job.command),
                env=_environment(job, self.rank, local_rank, address, folder),
                stdin=subprocess.DEVNULL,
                stdout=log if quiet else None,
                stderr=log if quiet else None,
                start_new_session=True,
            )
        self.stopped = False

    def failure(self) -> Report | None:
        """Why the process ended, if it ended badly by itself."""
        status = self.process.poll()
        if status is None or status == 0 or self.stopped:
            return None
        if status < 0:
            name = signal.Signals(-status).name
            message = f"was killed by signal {-status} ({name})"
            help = "the machine may be out of memory" if -status == signal.SIGKILL else ""
            return Report(self.rank, "killed", message, help=help, exit_status=1)
        return Report(self.rank, "exit", f"exited with status {status}", exit_status=status)

    def tail(self) -> str:
        """The last line that the worker printed, where it does not print to the terminal."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


def _environment(
    job: Job, rank: int, local_rank: int, address: tuple[str, int], folder: Path
) -> dict[str, str]:
    env = {**os.environ, **job.env}
    env.update(
        RANK=str(rank), LOCAL_RANK=str(local_rank), GROUP_RANK=str(job.node),
        WORLD_SIZE=str(job.processes), LOCAL_WORLD_SIZE=str(job.local),
        MASTER_ADDR=address[0], MASTER_PORT=str(address[1]),
        TORCHELASTIC_USE_AGENT_STORE="True", SHARDLANG_PARENT=str(os.getpid()),
    )  # fmt: skip
    env[FOLDER] = str(folder)
    if job.device == "cpu":
        env.setdefault("OMP_NUM_THREADS", "1")
    if job.nodes == 1:
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
        env.setdefault("GLOO_SOCKET_IFNAME", loopback)
        env.setdefault("NCCL_SOCKET_IFNAME", loopback)
    return env


def _watch(
    job: Job, workers: list[_Worker], nodes: Nodes, folder: Path, signals: _Signals
) -> Report | None:
    """Wait until all nodes are done or one fails; the report of the failure."""
    deadline = time.monotonic() + job.timeout_s if job.timeout_s is not None else None
    while True:
        signals.check()
        running = [worker for worker in workers if worker.process.poll() is None]
        if any(worker.failure() for worker in workers):
            blamed = _blame(workers, folder)
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


def _blame(workers: list[_Worker], folder: Path) -> Report | None:
    """The report of the rank that failed first and by itself, once the others have reported."""
    _wait_for(workers, SETTLE_S)
    ended = _ended(workers, folder)
    if all(report.kind == "exit" for report in ended):
        _wait_for(workers[:1], AGREE_S)
        ended = _ended(workers, folder)
    order = ("killed", "error", "exit", "stuck", "peer")
    return min(ended, key=lambda report: (order.index(report.kind), report.time_s), default=None)


def _wait_for(workers: list[_Worker], limit_s: float) -> None:
    """Wait until these workers have ended, or the time is up."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and any(w.process.poll() is None for w in workers):
        time.sleep(POLL_S)


def _ended(workers: list[_Worker], folder: Path) -> list[Report]:
    """Why each worker that failed did so, in the order of the ranks."""
    by_rank = {report.rank: report for report in read(folder)}
    return [by_rank.get(w.rank) or found for w in workers if (found := w.failure())]


def _stop(workers: list[_Worker]) -> None:
    """End every worker, and its own children with it."""
    for worker in workers:
        worker.stopped = worker.process.poll() is None
        if worker.stopped:
            worker.process.terminate()
    deadline = time.monotonic() + GRACE_S
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def _failure(report: Report, workers: list[_Worker], folder: Path) -> JobError:
    """The one message of a failed job."""
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
    return JobError(report, message, help)


_REMEDY = {
    "error": "mend what it says; the other ranks were ended",
    "exit": "mend what made it end; the other ranks were ended",
    "killed": "look at the machine's memory and log; the other ranks were ended",
}
"""What to do about a failure that says nothing of it itself, by kind."""


def _sentence(report: Report, alone: bool) -> str:
    """The message; what the person did wrong is said without a rank if all ranks say it."""
    persons_fault = report.kind == "error" and report.code != "SH0603"
    if report.kind == "gone" or (persons_fault and not alone):
        return report.message
    verb = "failed: " if report.kind == "error" else ""
    return f"rank {report.rank} {verb}{report.message}"


def this_command() -> list[str]:
    """The command line that started this process, for workers that run the same."""
    return [sys.executable, "-m", "shardlang", *sys.argv[1:]]
