"""Making things ahead in a thread, so many at most, while the caller computes."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_LOOK_S = 0.1
"""How often a thread that has made enough looks whether it is still needed."""


@dataclass(frozen=True, slots=True)
class _Made(Generic[T]):
    value: T


class Ahead(Generic[T]):
    """An iterator whose items a thread makes, up to `depth` of them before they are asked for.

    What the thread raises is raised to the caller, with the traceback of the thread, in place of
    the item. The thread ends when the iterator does, is closed or is let go of, and with the
    process.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._made: queue.Queue[_Made[T] | BaseException] = queue.Queue(depth)
        self._end = threading.Event()
        arguments = (items, self._made, self._end)
        self._thread = threading.Thread(target=_work, args=arguments, daemon=True)
        self._thread.name = "shardlang-data"
        self._stop = weakref.finalize(self, _stop, self._end, self._thread)
        self._thread.start()

    def __next__(self) -> T:
        if self._end.is_set():
            raise StopIteration
        found = self._made.get()
        if isinstance(found, BaseException):
            self._end.set()
            raise found
        return found.value

    def close(self) -> None:
        """End the thread, and forget what it has made."""
        self._stop()


def _work(
    items: Iterator[T], made: queue.Queue[_Made[T] | BaseException], end: threading.Event
) -> None:
    try:
        while _put(_Made(next(items)), made, end):
            pass
    except BaseException as error:
        _put(error, made, end)


def _put(
    item: _Made[T] | BaseException,
    made: queue.Queue[_Made[T] | BaseException],
    end: threading.Event,
) -> bool:
    """Hand an item over when there is room; whether it is still wanted."""
    while not end.is_set():
        try:
            made.put(item, timeout=_LOOK_S)
            return True
        except queue.Full:
            continue
    return False


def _stop(end: threading.Event, thread: threading.Thread) -> None:
    end.set()
    if thread is not threading.current_thread():
        thread.join()
