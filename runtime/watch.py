"""Which collective this rank is in: one slot, written before every call and cleared after it.

When a peer dies or never arrives, the name in the slot is what the person needs to hear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.profiler import record_function

from shardlang.runtime.peers import lost_in

T = TypeVar("T")


class Watch:
    """The slot.

    `now` is empty outside collectives. Where calls return before they are done (`starts_only`, on
    GPUs) the last name stays, since the wait for it comes later. While a step `is_traced`, calls
    stand in its trace by name.
    """

    __slots__ = ("is_traced", "now", "starts_only")

    def __init__(self) -> None:
        self.now = ""
        self.starts_only = False
        self.is_traced = False


WATCH = Watch()
"""The slot of this process."""


def named(label: str, call: Callable[..., T], *args: object) -> T:
    """Make a call while its name stands in the watch; an error that it raises bears the name."""
    WATCH.now = label
    try:
        out = traced(label, call, *args) if WATCH.is_traced else call(*args)
    except RuntimeError as error:
        if hasattr(error, "add_note"):
            error.add_note(f"in {label}")
        lost = lost_in(label, error)
        if lost is not None:
            raise lost from error
        raise
    if not WATCH.starts_only:
        WATCH.now = ""
    return out


def traced(label: str, call: Callable[..., T], *args: object) -> T:
    """Make a call that stands in the trace of a profiler under its name."""
    with record_function(label):
        return call(*args)
