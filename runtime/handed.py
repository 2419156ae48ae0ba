"""Values that are handed over in a list, each until it is taken."""

from __future__ import annotations


def taken(values: list[object], place: int) -> object:
    """A value of a list, which no longer holds it."""
    value, values[place] = values[place], None
    return value
