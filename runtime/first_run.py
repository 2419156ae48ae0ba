"""The first run of compiled code, in which its regions are compiled: on all ranks or on none.

A rank that cannot compile a region runs it op by op to the end, so that no other rank waits for it.
Then the ranks tell each other, and what one has met is raised on all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch.distributed as dist

from shardlang.runtime.errors import RunError
from shardlang.runtime.groups import Groups
from shardlang.runtime.region import Regions
from shardlang.runtime.watch import named

T = TypeVar("T")

_Said = tuple[str, str, str]


class FirstRun(Generic[T]):
    """Code that is compiled in its first run."""

    __slots__ = ("_done", "_groups", "_regions", "_run")

    def __init__(self, run: Callable[..., T], regions: Regions, groups: Groups) -> None:
        """Collective: construct it on every rank."""
        self._run, self._regions, self._groups, self._done = run, regions, groups, False
        groups.on_host()

    def __call__(self, *args: object) -> T:
        """Run it. The first time collective.

        Raises:
            RunError: SH0644, on every rank, where some rank cannot compile a region.
        """
        made = self._run(*args)
        if not self._done:
            _raise_on_all(self._regions.failure, self._groups)
            self._done = True
        return made


def _raise_on_all(failure: RunError | None, groups: Groups) -> None:
    """Raise what some rank has met, on every rank. Collective."""
    host = groups.on_host()
    if host is None:
        if failure is not None:
            raise failure
        return
    mine = None if failure is None else (failure.code, failure.message, failure.help)
    said: list[_Said | None] = [None] * groups.mesh.devices
    named("comparison of what was compiled", dist.all_gather_object, said, mine, host.process_group)
    for rank, one in enumerate(said):
        if one is not None:
            code, message, help = one
            raise RunError(code, f"rank {rank} failed: {message}", help=help) from failure
