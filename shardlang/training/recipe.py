"""From a compiled spec to how it is trained."""

from __future__ import annotations

from shardlang.compiler.driver import Compiled
from shardlang.ir.schedules import Phase
from shardlang.runtime.trainer.recipe import Recipe
from shardlang.training.work import work_of


def recipe_of(compiled: Compiled, steps: int = 0, seed: int = 0) -> Recipe:
    """How to train, as `optimizer`, `group`, `learning_rate` and `precision` say."""
    stated = compiled.spec.learning_rate
    phases = [] if stated is None else [Phase(x.name, dict(x.arguments)) for x in stated.phases]
    precision = compiled.program.step.precision
    return Recipe(steps, compiled.rule, seed, precision, tuple(phases), work_of(compiled))
