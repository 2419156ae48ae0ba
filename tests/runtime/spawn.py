"""Run a function on several gloo processes of this machine and collect what each returns."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from shardlang.runtime.launch import Job, launch
from tests.runtime.forking import forked_ranks

ROOT = Path(__file__).resolve().parents[2]


def spawn(
    function: str,
    processes: int,
    out: Path,
    timeout_s: float = 60.0,
    saves: bool = False,
    fresh: bool = False,
    failed: Path | None = None,
    **env: str,
) -> list[Any]:
    """The results of `module:function` on every rank.

    Ranks are forks of a process that has their imports, or, if `fresh`, start as a job's do.

    Raises:
        RunError: a rank failed, or the time is up.
    """
    command = [sys.executable, str(Path(__file__).with_name("child.py")), function, str(out)]
    paths = f"{ROOT}:{ROOT / 'tests' / 'runtime'}"
    env = {"PYTHONPATH": paths, **env}
    with nullcontext() if fresh else forked_ranks():
        launch(Job(command, processes, timeout_s=timeout_s, env=env, saves=saves, failed=failed))
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(processes)]
