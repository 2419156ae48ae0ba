"""Run a function on several gloo processes of this machine and collect what each returns."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from shardlang.runtime.launch import Job, launch
from tests.runtime.forking import forked_ranks, zygotes_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def spawn(
    function: str,
    processes: int,
    out: Path,
    timeout_s: float = 240.0,
    saves: bool = False,
    fresh: bool = False,
    failed: Path | None = None,
    prepared: int = 0,
    **env: str,
) -> list[Any]:
    """The results of `module:function` on every rank.

    Ranks are forks of a process that has their imports, or, if `fresh`, start as a job's do.

    Args:
        prepared: of how many processes that have also called `prepare` of the module, which
            compiles for their ranks; they compile apart, each with a hash seed of its own.

    Raises:
        RunError: a rank failed, or the time is up.
    """
    command = [sys.executable, str(HERE / "child.py"), function, str(out)]
    paths = f"{ROOT}:{HERE}"
    env = {"PYTHONPATH": paths, **env}
    with ExitStack() as around:
        if not fresh:
            around.enter_context(forked_ranks())
        if prepared:
            job = [sys.executable, str(HERE / "prepared.py"), function.split(":")[0]]
            zygotes = around.enter_context(zygotes_of(job, {**os.environ, **env}, prepared))
            around.enter_context(forked_ranks(zygotes))
        launch(Job(command, processes, timeout_s=timeout_s, env=env, saves=saves, failed=failed))
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(processes)]


def in_two_jobs(
    names: Collection[str], few: Collection[str], run: Callable[[list[str]], list[Any]]
) -> Callable[[str], list[Any]]:
    """Gives what every rank found in the job of a name: one of the few, and one of the others.

    A job runs when it is first asked for, so that of the others only where they are tested.
    """
    job = functools.cache(lambda first: run([name for name in names if (name in few) == first]))
    return lambda name: job(name in few)
