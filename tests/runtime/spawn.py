"""Run a function on several gloo processes of this machine and collect what each returns."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from shardlang.runtime.launch import Job, launch
from tests.runtime.forking import forked_ranks, zygote_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def spawn(
    function: str,
    processes: int,
    out: Path,
    timeout_s: float = 60.0,
    saves: bool = False,
    fresh: bool = False,
    failed: Path | None = None,
    prepared: bool = False,
    **env: str,
) -> list[Any]:
    """The results of `module:function` on every rank.

    Ranks are forks of a process that has their imports, or, if `fresh`, start as a job's do. If
    `prepared`, that process has also called `prepare` of the module, which compiles for all ranks.

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
            zygote = around.enter_context(zygote_of(job, {**os.environ, **env}))
            around.enter_context(forked_ranks([zygote]))
        launch(Job(command, processes, timeout_s=timeout_s, env=env, saves=saves, failed=failed))
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(processes)]
