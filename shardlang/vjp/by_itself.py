"""Work apart from what surrounds the call that asks for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def by_itself(work: Callable[[], T]) -> T:
    """Do some work in a thread of its own: without the caller's modes, hooks and defaults.

    Hooks on what autograd saves, `inference_mode`, a default device and every mode of torch belong
    to a thread, and would be written down with the ops that run under them.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
