"""How a model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shardlang.ir.precision import OWN_TYPES, Precision
from shardlang.runtime.optim import DEFAULT


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: the optimizer with its arguments (`clip` included), the steps and the seed.

    Attributes:
        precision: the types that are stated, and the factor of the loss.
    """

    steps: int
    optimizer: str = DEFAULT[0]
    arguments: Mapping[str, object] = field(default_factory=lambda: dict(DEFAULT[1]))
    seed: int = 0
    precision: Precision = OWN_TYPES
