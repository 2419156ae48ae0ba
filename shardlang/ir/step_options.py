"""What a spec says of the step program beyond its layouts: the options of the passes on it."""

from __future__ import annotations

from dataclasses import dataclass

from shardlang.ir.precision import OWN_TYPES, Precision


@dataclass(frozen=True, slots=True)
class Recompute:
    """What the backward computes again instead of keeping it.

    Attributes:
        modules: modules, none inside another, of which all is computed again.
        selective: whatever is cheap is computed again, wherever it stands.
        budget_bytes: as much is computed again as it takes for the step to reach no higher peak of
            live bytes on a device; None where that is not limited.
        values: values of the forward, by name, that are computed again: what has been decided.
    """

    modules: tuple[str, ...] = ()
    selective: bool = False
    budget_bytes: int | None = None
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepOptions:
    """The options of the passes on a step program.

    Attributes:
        prefetch: bytes of gathered parameters that may be in flight; None for what the pass
            `schedule` chooses by itself.
        recompute: what the backward computes again.
        precision: the types beside those of the model.
    """

    prefetch: int | None = None
    recompute: Recompute = Recompute()
    precision: Precision = OWN_TYPES


NO_OPTIONS = StepOptions()
"""What holds where a spec says nothing of the step program."""
