"""Training by hand: a loaded module, the spec's optimizer, and one batch after another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from shardlang.compiler.driver import Compiled
from shardlang.runtime.backends import compiler_around
from shardlang.runtime.data import Batch
from shardlang.runtime.errors import RunError
from shardlang.runtime.module import ShardedModule
from shardlang.runtime.optim import ShardedOptimizer
from shardlang.runtime.outside import outside_itself
from shardlang.runtime.trainer.evaluation import Evaluating
from shardlang.runtime.trainer.learning_rate import LearningRate
from shardlang.runtime.trainer.step import as_batch, one_step
from shardlang.runtime.trainer.trainees import ShardedTrainee
from shardlang.runtime.trainer.trainer import Trainer
from shardlang.training.accumulated import AccumulatedTrainee
from shardlang.training.data import shared_stream
from shardlang.training.evaluating import evaluating_of
from shardlang.training.recipe import recipe_of
from shardlang.training.staged import StagedTrainee


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave.

    Attributes:
        grad_norm: the norm of all gradients before clipping.
        skipped: the gradients were not finite, and the next loss is multiplied by less.
    """

    loss: float
    grad_norm: float
    skipped: bool = False

    @property
    def finite(self) -> bool:
        """Whether both are finite; if not, the step changed no parameter."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def trainee_of(compiled: Compiled, module: ShardedModule, seed: int = 0) -> ShardedTrainee:
    """A loaded module as the training loop sees it. Collective.

    Raises:
        CompileError: the batch cannot be cut into microbatches.
    """
    if compiled.spec.pipeline is not None:
        return StagedTrainee(compiled, module, seed)
    stated = compiled.spec.accumulate
    if stated is None or stated.count == 1:
        return ShardedTrainee(module)
    return AccumulatedTrainee(compiled, module, seed)


class Training:
    """A loaded module and what trains it."""

    def __init__(self, compiled: Compiled, module: ShardedModule) -> None:
        self._compiled, self._module = compiled, module
        self._trainee = trainee_of(compiled, module)

    @property
    def optimizer(self) -> ShardedOptimizer:
        """The spec's optimizer on the module, with the rate of the first step. Collective."""
        return self._updates[0]

    @property
    def learning_rate(self) -> LearningRate:
        """The spec's schedule on that optimizer. Collective."""
        return self._updates[1]

    @cached_property
    def _updates(self) -> tuple[ShardedOptimizer, LearningRate]:
        recipe = recipe_of(self._compiled)
        optimizer = ShardedOptimizer(self._module, recipe.rule, recipe.precision)
        return optimizer, LearningRate(optimizer, recipe.phases)

    def trainer(
        self,
        batches: Iterable[Batch] | None,
        seed: int = 0,
        evaluating: Evaluating | None = None,
    ) -> Trainer:
        """What takes steps of the module over batches, by the same optimizer. Collective.

        Args:
            batches: None for those of the spec.
            evaluating: None for what the spec says.
        """
        if batches is None:
            batches = shared_stream(self._compiled, self._trainee, seed)
        if evaluating is None:
            evaluating = evaluating_of(self._compiled, seed, trainee=self._trainee)
        return Trainer(
            self._trainee,
            batches,
            recipe_of(self._compiled, seed=seed),
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            evaluating=evaluating,
        )

    @outside_itself
    def step(self, batch: Mapping[str, Tensor]) -> StepResult:
        """Train on one whole batch, whatever gradients lie there. Collective.

        Raises:
            RunError: SH0644, a `torch.compile` is around it; SH0631, there is no loss.
        """
        if compiler_around() is not None:
            raise RunError(
                "SH0644",
                "`torch.compile` does not reach into `program.step`",
                help="load the program with `load(compile=True)`, and call `program.step` as it is",
            )
        self.optimizer.zero_grad()
        given = self._trainee.prepare(as_batch(batch))
        schedule = self.learning_rate
        made = one_step(self._trainee, given, self.optimizer)
        if made.stepped:
            schedule.step()
        if made.loss is None or made.norm is None:
            raise RunError(
                "SH0631",
                "the program has no loss to train by",
                help="name the output that is the loss: `loss NAME`",
            )
        return StepResult(made.loss, made.norm, made.skipped)
