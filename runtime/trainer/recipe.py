"""How a model is trained."""

from __future__ import annotations

from dataclasses import dataclass

from shardlang.ir.optimizers import ASSUMED, UpdateRule
from shardlang.ir.precision import OWN_TYPES, Precision
from shardlang.ir.schedules import Phase
from shardlang.runtime.trainer.work import Work


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: the update, the steps and the seed.

    Attributes:
        rule: the optimizer and its groups.
        phases: of the learning rate; none leaves it as the optimizer states it.
        precision: the types that are stated, and the factor of the loss.
        work: what a step computes; None where no peak of a device is stated.
    """

    steps: int = 0
    rule: UpdateRule = ASSUMED
    seed: int = 0
    precision: Precision = OWN_TYPES
    phases: tuple[Phase, ...] = ()
    work: Work | None = None
