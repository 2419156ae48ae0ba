"""How long this rank waits for what other ranks send, while a step is measured.

On a CPU a wait holds the process, and the clock is read around it. On a GPU it holds the stream
that computes, and an event is recorded on both sides of it; what the GPU has not come to yet when
the seconds are asked for counts in the next step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

Mark: TypeAlias = "float | torch.cuda.Event | None"
"""When a wait began: by the clock, or on the stream; None where nothing is measured."""


@dataclass(slots=True)
class Waits:
    """The waits of this process.

    Attributes:
        is_measured: whether they are measured now.
        on_gpu: whether they hold a stream of a GPU, and not the process.
    """

    is_measured: bool = False
    on_gpu: bool = False
    _seconds: float = 0.0
    _pairs: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=deque)

    def begin(self) -> Mark:
        """Note that a wait may begin."""
        if not self.is_measured:
            return None
        return _event() if self.on_gpu else time.perf_counter()

    def end(self, began: Mark) -> None:
        """Note that it has ended."""
        if isinstance(began, float):
            self._seconds += time.perf_counter() - began
        elif began is not None:
            self._pairs.append((began, _event()))

    def taken_s(self) -> float:
        """The seconds since they were taken last."""
        while self._pairs and self._pairs[0][1].query():  # type: ignore[no-untyped-call]
            began, ended = self._pairs.popleft()
            self._seconds += began.elapsed_time(ended) / 1000
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @contextmanager
    def measured(self, on_gpu: bool) -> Iterator[None]:
        """Measure the waits inside."""
        self.is_measured, self.on_gpu = True, on_gpu
        try:
            yield
        finally:
            self.is_measured = False


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


WAITS = Waits()
"""Those of this process."""
