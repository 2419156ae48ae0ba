"""The few words that all processes of a run exchange about a checkpoint.

They go over a gloo group of their own: the saving thread talks while the run trains on its groups,
and calls of two threads on one group would meet each other's.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch.distributed as dist

from shardlang.runtime.errors import RunError
from shardlang.runtime.watch import named

T = TypeVar("T")

TIMEOUT_S = 1800.0
"""How long a rank waits for the others to have written or read their parts."""


def waiting(call: Callable[[], T]) -> T:
    """Wait for the others; the main thread is seen to, and the saving one has no name."""
    if threading.current_thread() is threading.main_thread():
        return named(LABEL, call)
    return call()


LABEL = "words about a checkpoint"


class Ranks:
    """All processes of the run. Making it is collective."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if several else 0
        self.size = dist.get_world_size() if several else 1
        self.group: dist.ProcessGroup | None = None
        if several:
            limit = datetime.timedelta(seconds=timeout_s)
            self.group = dist.new_group(backend="gloo", timeout=limit, group_desc="checkpoints")

    def gather(self, mine: T) -> list[T]:
        """What each rank says, in the order of the ranks. Collective."""
        if self.group is None:
            return [mine]
        found: list[T] = [mine] * self.size
        call = partial(dist.all_gather_object, found, mine, group=self.group)
        waiting(call)
        return found

    def each(self, task: Callable[[], T]) -> list[T]:
        """What a task gives on each rank. Collective.

        Raises:
            RunError: the task failed on some rank; all ranks raise what the first of these did.
        """
        failure: Exception | None = None
        mine: T | None = None
        try:
            mine = task()
        except Exception as error:
            failure = error
        said = self.gather((mine, _words_of(failure)))
        for rank, (_, words) in enumerate(said):
            if words is not None:
                raise _error_of(words, rank, self.size) from failure
        return [value for value, _ in said if value is not None]

    def first(self, task: Callable[[], T]) -> T:
        """What a task gives on rank 0, told to all. Collective.

        Raises:
            RunError: it failed; on all ranks.
        """
        said: list[list[T]] = self.each(lambda: [task()] if self.rank == 0 else [])
        return said[0][0]


_Words = tuple[str, str, str, tuple[str, ...]]
"""Code, message, help and notes of an error; any error has a message."""


def _words_of(error: Exception | None) -> _Words | None:
    if error is None:
        return None
    if isinstance(error, RunError):
        return error.code, error.message, error.help, error.notes
    return "", reason(error), "", ()


def _error_of(words: _Words, rank: int, size: int) -> RunError:
    code, message, help, notes = words
    if code:
        return RunError(code, message, help=help, notes=notes)
    where = f"rank {rank}: " if size > 1 else ""
    return RunError("SH0661", f"{where}{message}", help=_HELP)


_HELP = "look at the folder, its rights and its room"


def reason(error: BaseException) -> str:
    """Why something failed, in words."""
    if isinstance(error, OSError) and error.strerror:
        of = f" (`{error.filename}`)" if error.filename else ""
        return f"{error.strerror.lower()}{of}"
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
