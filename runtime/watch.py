"""Which collective this rank is in: one slot, written before every call and cleared after it.

When a peer dies or never arrives, the name in the slot is what the person needs to hear.
"""

from __future__ import annotations


class Watch:
    """The slot. `now` is empty outside collectives; `step` counts the calls."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = ""


WATCH = Watch()
"""The slot of this process."""
