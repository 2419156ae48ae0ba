"""Python's garbage collection while libraries are imported and a program is compiled."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

RARELY = (50_000, 20, 20)
"""Allocations before the youngest objects are looked through, and how often the older ones are."""


@contextlib.contextmanager
def rarely_collected() -> Iterator[None]:
    """Collect garbage less often inside: imports and compilations make objects that all stay.

    At Python's own thresholds the collections take about a sixth of a command's time. Tensors go
    with their last reference, so a training loop keeps no memory for it.
    Thresholds that are wider already, and a collector that is off, stay as they are.
    """
    before = gc.get_threshold()
    if 0 < before[0] < RARELY[0]:
        gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)
