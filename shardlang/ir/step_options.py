"""What a spec says of the step program beyond its layouts: the options of the passes on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepOptions:
    """The options of the passes on a step program.

    Attributes:
        prefetch: bytes of gathered parameters that may be in flight; None for what the pass
            `schedule` chooses by itself.
    """

    prefetch: int | None = None


NO_OPTIONS = StepOptions()
"""What holds where a spec says nothing of the step program."""
