"""The processes of a job on this node: what to start, and how each ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shardlang.runtime.errors import RunError
from shardlang.runtime.logs import Logs
from shardlang.runtime.reports import FOLDER, Report

GRACE_S = 5.0
"""Between SIGTERM and SIGKILL."""

SAVED = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE))
"""The exit statuses of a worker that was asked to end and has saved."""


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
        saves: whether the workers save what they have when they are asked to end.
        logs: the folder for what the other ranks than 0 print, and for tracebacks; by default one
            for temporary files, which does not stay.
        failed: where these go from there if the job fails by no fault of the person's.
    """

    command: Sequence[str]
    processes: int
    device: str = "cpu"
    nodes: int = 1
    node: int = 0
    endpoint: str = ""
    timeout_s: float | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    saves: bool = False
    logs: Path | None = None
    failed: Path | None = None

    @property
    def local(self) -> int:
        """Number of processes on this node."""
        if self.processes % self.nodes:
            raise RunError(
                "SH0601", f"{self.processes} processes do not divide over {self.nodes} nodes",
                help="choose a number of nodes that divides the number of devices",
            )  # fmt: skip
        return self.processes // self.nodes


class Worker:
    """One process of the job."""

    def __init__(self, job: Job, local_rank: int, address: tuple[str, int], logs: Logs) -> None:
        self.rank = job.node * job.local + local_rank
        self.log = logs.folder / f"{self.rank}.log"
        self._saves = job.saves
        quiet = self.rank != 0
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                list(job.command),
                env=_environment(job, self.rank, local_rank, address, logs.reports),
                stdin=subprocess.DEVNULL,
                stdout=log if quiet else None,
                stderr=log if quiet else None,
                start_new_session=True,
            )
        self.stopped = False

    def failure(self) -> Report | None:
        """Why the process ended, if it ended badly by itself."""
        status = self.process.poll()
        if status is None or status == 0 or self.stopped or self.saved:
            return None
        if status < 0:
            name = signal.Signals(-status).name
            message = f"was killed by signal {-status} ({name})"
            help = "the machine may be out of memory" if -status == signal.SIGKILL else ""
            return Report(self.rank, "killed", message, help=help, exit_status=1)
        return Report(self.rank, "exit", f"exited with status {status}", exit_status=status)

    @property
    def halted(self) -> bool:
        """Whether a signal has stopped the process, as far as the system says."""
        try:
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state in ("T", "t")

    @property
    def saved(self) -> bool:
        """Whether the process ended as it was asked to, having saved what it had."""
        return self._saves and self.process.poll() in SAVED

    def tail(self) -> str:
        """The last line that the worker printed, where it does not print to the terminal."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


HASH_SEED = "PYTHONHASHSEED"
"""Python's variable by which the sets of all processes have one order."""


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
    env.setdefault(HASH_SEED, "0")
    if job.device == "cpu":
        env.setdefault("OMP_NUM_THREADS", "1")
    if job.nodes == 1:
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
        env.setdefault("GLOO_SOCKET_IFNAME", loopback)
        env.setdefault("NCCL_SOCKET_IFNAME", loopback)
    return env


def stop_all(workers: list[Worker], at_once: bool = False) -> None:
    """End every worker, and its own children with it."""
    for worker in workers:
        worker.stopped = worker.process.poll() is None
        if worker.stopped:
            worker.process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
