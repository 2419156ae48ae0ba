"""From a compiled spec to how it is trained."""

from __future__ import annotations

from shardlang.compiler.driver import Compiled
from shardlang.runtime.optim import DEFAULT
from shardlang.runtime.trainer.recipe import Recipe


def recipe_of(compiled: Compiled, steps: int = 0, seed: int = 0) -> Recipe:
    """How to train, as the spec's `optimizer` statement says."""
    stated = compiled.spec.optimizer
    name, arguments = (stated.name, stated.kwargs) if stated is not None else DEFAULT
    return Recipe(steps, name, arguments, seed, compiled.program.step.precision)
