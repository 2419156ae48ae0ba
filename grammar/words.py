"""Words in messages."""

from __future__ import annotations


def counted(count: int, word: str) -> str:
    """`1 device`, `8 devices`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
