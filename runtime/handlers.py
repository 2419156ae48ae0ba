"""Handlers of the signals that end a job, put in place for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


class Handlers:
    """What answered the signals before, to be put back; nothing outside the main thread."""

    def __init__(self) -> None:
        self._before: dict[int, Handler | int | None] = {}

    def set(self, handler: Handler) -> None:
        """Let `handler` answer an interrupt and a request to end."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, handler)

    def restore(self) -> None:
        """Put back what was there."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
