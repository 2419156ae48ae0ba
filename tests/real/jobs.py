"""One job for each spec: a process that compiles it once and forks a rank for every device.

A job that fails or takes too long is ended with all of its ranks, and so is everything when this
process ends. Ranks meet through a file, and gloo listens on the loopback interface alone.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shardlang.ir.program import LocalProgram, apply_reshard, apply_reshards
from shardlang.proof.values import all_values
from shardlang.runtime.groups import Groups
from tests.real.plain import Plain
from tests.real.processes import POLL_S, SETTLE_S, end, forked, said, status_of, wait
from tests.real.ranks import Differences, differences
from tests.real.subjects import Subject, from_spec

TOLERANCE = 1e-10
SEED = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one spec.

    Attributes:
        compared: how many tensors were compared on each rank.
        worst: the largest difference of all ranks, steps and tensors.
        wrong: how many tensors differ, and `first`, the first of them.
        steps: the rows of the table that its programs have, as `all_gather S R`.
        error: a traceback, if the spec did not run.
    """

    name: str
    devices: int = 0
    runs: int = 0
    compared: int = 0
    worst: float = 0.0
    wrong: int = 0
    first: str = ""
    steps: tuple[str, ...] = ()
    error: str = ""
    time_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it ran, and everything is equal."""
        return not self.error and self.compared > 0 and not self.wrong

    def as_json(self) -> dict[str, Any]:
        """All of it, and whether it is right."""
        worst = self.worst if self.worst < float("inf") else "inf"
        return {**asdict(self), "worst": worst, "ok": self.ok}

    def __str__(self) -> str:
        if self.error:
            return f"FAILED {self.name}\n{self.error}"
        mark = "ok    " if self.ok else "WRONG "
        at = f", {self.wrong} wrong, first {self.first}" if self.wrong else ""
        return (
            f"{mark} {self.name}: {self.devices} devices, {self.compared} tensors,"
            f" worst {self.worst:.1e}{at}"
        )


Ask = tuple[Any, ...]
"""A function that makes a subject, and its arguments."""


def run_all(asked: Mapping[str, Ask], steps: int, jobs: int, timeout_s: float) -> Iterator[Outcome]:
    """The outcome of each, as it comes; `jobs` run at a time."""
    _warm()
    waiting = list(asked)
    running: dict[int, tuple[str, Path, float]] = {}
    with tempfile.TemporaryDirectory(prefix="shardlang-real-") as scratch:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    name = waiting.pop(0)
                    folder = Path(tempfile.mkdtemp(dir=scratch))
                    job = _Job(name, asked[name], steps, timeout_s, folder)
                    running[forked(job.run, folder / "job")] = (name, folder, time.monotonic())
                yield from _ended(running, timeout_s + 4 * SETTLE_S)
        finally:
            for pid in running:
                end(pid)


def _warm() -> None:
    """Compile something, so that jobs inherit what is made when it is first used."""
    from_spec(str(Path(__file__).with_name("specs") / "mlp_tensor.shard"), {}).program()
    gc.freeze()


def _ended(running: dict[int, tuple[str, Path, float]], limit_s: float) -> Iterator[Outcome]:
    """The outcomes of jobs that have ended since."""
    time.sleep(POLL_S)
    for pid, (name, folder, began) in list(running.items()):
        late = time.monotonic() - began > limit_s
        if late:
            end(pid)
        if late or status_of(pid) is not None:
            del running[pid]
            yield _outcome(name, folder, time.monotonic() - began)


def _outcome(name: str, folder: Path, time_s: float) -> Outcome:
    found = folder / "outcome.json"
    if not found.exists():
        return Outcome(name, error=said(folder / "job") or "the job was killed", time_s=time_s)
    return Outcome(name, **json.loads(found.read_text()), time_s=round(time_s, 2))


@dataclass(frozen=True, slots=True)
class _Job:
    """One spec, in a process of its own."""

    name: str
    ask: Ask
    steps: int
    timeout_s: float
    folder: Path

    def run(self) -> None:
        """Compile, run the plain model, and compare every variant with it."""
        deadline = time.monotonic() + self.timeout_s
        make, *arguments = self.ask
        subject: Subject = make(*arguments)
        found: Differences = {}
        variants = subject.variants()
        for name, variant in variants.items():
            prefix = f"{name}, " if name else ""
            mine = self._compare(variant, self.folder / (name or "stated"), deadline)
            found |= {prefix + what: distance for what, distance in mine.items()}
        wrong = [what for what, distance in found.items() if not distance < TOLERANCE]
        outcome = {
            "devices": subject.statements.mesh.devices, "runs": len(variants),
            "compared": len(found), "worst": max(found.values()),
            "wrong": len(wrong), "first": wrong[0] if wrong else "",
            "steps": sorted({row for each in variants.values() for row in _rows(each.program())}),
        }  # fmt: skip
        (self.folder / "outcome.json").write_text(json.dumps(outcome))

    def _compare(self, subject: Subject, folder: Path, deadline: float) -> Differences:
        folder.mkdir()
        program = subject.program()
        batches = subject.batches(self.steps, SEED)
        values = all_values(subject.captured, subject.source, batches[0], SEED)
        plain = Plain(subject, program, values)
        reference = [plain.step(batch, i) for i, batch in enumerate(batches)]

        def work(rank: int) -> Callable[[], None]:
            def run() -> None:
                faulthandler.dump_traceback_later(max(deadline - time.monotonic() - 1, 0.1))
                groups = _meet(program.mesh, rank, folder, self.timeout_s)
                found = differences(subject, program, groups, values, batches, reference)
                torch.save(found, folder / f"{rank}.pt")
                dist.barrier() if dist.is_initialized() else None

            return run

        ranks = range(program.mesh.devices)
        wait({forked(work(rank), folder / str(rank)): rank for rank in ranks}, folder, deadline)
        return _largest([torch.load(folder / f"{rank}.pt") for rank in ranks])


def _meet(mesh: Any, rank: int, folder: Path, timeout_s: float) -> Groups:
    """Meet the other ranks through a file of the folder."""
    if mesh.devices > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = dist.FileStore(str(folder / "store"), mesh.devices)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=mesh.devices)
    return Groups(mesh, rank)


def _rows(program: LocalProgram) -> Iterator[str]:
    """The rows of the table of steps that a program has."""
    for node in program.graph.nodes:
        if node.target in (apply_reshard, apply_reshards):
            steps = node.args[1] if node.target is apply_reshards else [node.args[1]]
            for step in steps:
                yield " ".join((step.kind, *step.states))
            if node.target is apply_reshards:
                yield f"{steps[0].kind} together"


def _largest(found: Sequence[Differences]) -> Differences:
    """By tensor, the largest difference of all ranks."""
    assert all(each.keys() == found[0].keys() for each in found)
    return {what: max(each[what] for each in found) for what in found[0]}
