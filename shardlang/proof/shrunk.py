"""Sizes that are cut, and what cannot be."""

from __future__ import annotations

import math


class CannotShrink(ValueError):
    """Cutting the model changes how it is sharded, or there is nothing to cut."""


def smaller(size: int, shards: int, least: int) -> int:
    """A size near `least` that divides over `shards`, or leaves a remainder, as `size` does."""
    if size <= least:
        return size
    base = shards * max(1, math.ceil(least / shards))
    rest = size % shards
    return min(size, base + (rest if rest else 0))
