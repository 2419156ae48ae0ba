"""From a compiled spec to how it is trained."""

from __future__ import annotations

from shardlang.compiler.driver import Compiled
from shardlang.ir.schedules import Phase
from shardlang.runtime.trainer.recipe import Recipe
from shardlang.spec import Spec
from shardlang.training.work import work_of


def recipe_of(compiled: Compiled, steps: int = 0, seed: int = 0) -> Recipe:
    """How to train, as `optimizer`, `group`, `learning_rate` and `precision` say."""
    precision, phases = compiled.program.step.precision, phases_of(compiled.spec)
    return Recipe(steps, compiled.rule, seed, precision, phases, work_of(compiled))


def phases_of(spec: Spec) -> tuple[Phase, ...]:
    """The schedule of the learning rate; empty where none is stated."""
    stated = spec.learning_rate
    return () if stated is None else tuple(Phase(x.name, dict(x.arguments)) for x in stated.phases)
