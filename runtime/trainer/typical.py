"""What is typical of the steps of a run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def median(values: Sequence[float | None]) -> float | None:
    """The median without the first step's, which pays for warming up.

    Steps without a value do not count; None where no step has one.
    """
    later = [x for x in values[1:] if x is not None] or [x for x in values if x is not None]
    return round(statistics.median(later), 6) if later else None
