"""The training loop, one for the sharded model and for the plain one that it is compared with."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch

from shardlang.runtime.checkpoint.entries import Part
from shardlang.runtime.data import Batch
from shardlang.runtime.errors import RunError, concerning
from shardlang.runtime.trainer.evaluation import (
    Around,
    DroppedError,
    Evaluated,
    Evaluating,
    evaluate,
)
from shardlang.runtime.trainer.given import Given
from shardlang.runtime.trainer.learning_rate import LearningRate, check_lasts
from shardlang.runtime.trainer.memory import StepMemory
from shardlang.runtime.trainer.random_states import RandomStates
from shardlang.runtime.trainer.recipe import Recipe
from shardlang.runtime.trainer.records import Done, Record
from shardlang.runtime.trainer.step import as_batch, count_tokens, one_step
from shardlang.runtime.trainer.stream import stream_of
from shardlang.runtime.trainer.trainees import Trainee, Updates
from shardlang.runtime.waits import WAITS

AfterStep = Callable[["Trainer", Record], None]
"""What is done after each step, before its record is given out."""


class Trainer:
    """A model, its optimizer and its batches, from step to step.

    Attributes:
        trainee: what is trained.
        optimizer: what changes its parameters.
        step_number: the steps that were taken, those before a resume included.
        before_step: what is done before each step, once its batch is there.
        after_step: what is done after each step.
        goes_on: whether the run goes on after a step that is not finite; if so it is skipped.
    """

    def __init__(
        self,
        trainee: Trainee,
        batches: Iterable[Batch],
        recipe: Recipe,
        *,
        optimizer: Updates | None = None,
        learning_rate: LearningRate | None = None,
        evaluating: Evaluating | None = None,
        around: Around = iter,
        around_evaluation: Around = iter,
    ) -> None:
        """Seed torch's generators, and make the optimizer. Collective.

        Args:
            batches: whole batches, the same on every rank.
            optimizer: one that exists, in place of that of the recipe.
            learning_rate: the schedule on that one.
            evaluating: when to evaluate, and on what; None for never.
            around: what stands between the batches and the loop.
            around_evaluation: the same, of each evaluation, which it may drop.

        Raises:
            RunError: SH0606, the optimizer cannot be made; SH0631, nothing can be trained.
        """
        torch.manual_seed(recipe.seed)
        _check_trainable(trainee)
        self.trainee, self.recipe = trainee, recipe
        self.optimizer = optimizer or trainee.optimizer(recipe.rule, recipe.precision)
        self.learning_rate = learning_rate or LearningRate(self.optimizer.shown, recipe.phases)
        self.evaluating, self._around_evaluation = evaluating, around_evaluation
        self.step_number = 0
        self.before_step: list[Callable[[Trainer], None]] = []
        self.after_step: list[AfterStep] = []
        self.goes_on: Callable[[Record], bool] = lambda record: False
        self._on_gpu = any(p.is_cuda for p in trainee.module.parameters())
        self._memory = StepMemory(self._on_gpu)
        self._stream = stream_of(batches)
        self._places: deque[dict[str, object]] = deque()
        self._batches = around(self._noted())
        self._place = self._stream.state_dict()

    def _noted(self) -> Iterator[Batch]:
        """The batches, each with the place behind it: what is read ahead is not trained on yet."""
        with concerning("data"):
            for whole in self._stream:
                self.trainee.check(as_batch(whole))
                self._places.append(self._stream.state_dict())
                yield whole

    def steps(self, count: int) -> Iterator[Record]:
        """Take steps, so many further than now, and give a record of each.

        Fewer, where the batches end; and none after one that is not finite, unless a smaller factor
        of the loss may mend it, or `goes_on` says so.

        Raises:
            TypeError: `count` is no whole number.
            ValueError: it is negative.
            RunError: SH0646, the learning rate ends before; else as for a call of the module.
        """
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"`steps` takes a number of steps, not {count!r}")
        if count < 0:
            raise ValueError(f"`steps` takes a number of steps, at least 0, not {count}")
        check_lasts(self.learning_rate.phases, self.step_number + count)
        return self._steps(self.step_number + count)

    def _steps(self, end: int) -> Iterator[Record]:
        """Take steps up to one, and give a record of each."""
        while self.step_number < end:
            whole = next(self._batches, None)
            if whole is None:
                return
            for prepare in self.before_step:
                prepare(self)
            record = self._step(whole)
            if record.not_finite and not record.skipped and self.goes_on(record):
                record = replace(record, skipped=True)
            record = self._evaluated(record)
            for hook in self.after_step:
                hook(self, record)
            yield record
            if record.not_finite and not record.skipped:
                return

    def _step(self, whole: Batch) -> Record:
        self._memory.begin()
        place = self._places.popleft()
        batch = self.trainee.prepare(as_batch(whole))
        rate = self.learning_rate.rate
        made, taken, exposed = self._timed(batch)
        work = self.recipe.work
        self.step_number += 1
        self._place = place
        return Record(
            self.step_number,
            made.loss,
            made.norm,
            rate,
            taken,
            count_tokens(whole) / taken,
            exposed_s=exposed,
            peak_bytes=self._memory.peak_bytes(),
            mfu=None if work is None else work.mfu(whole, taken),
            skipped=made.skipped,
        )

    def _timed(self, batch: Batch) -> tuple[Done, float, float]:
        """Take a step; with it, the seconds that it took, and those of them spent waiting."""
        began = time.perf_counter()
        with WAITS.measured(self._on_gpu):
            made = one_step(self.trainee, batch, self.optimizer)
            if made.stepped:
                self.learning_rate.step()
        return made, time.perf_counter() - began, WAITS.taken_s()

    def _evaluated(self, record: Record) -> Record:
        """The record, with the loss of an evaluation if it is time for one that is not dropped."""
        if self.evaluating is None or self.step_number % self.evaluating.every:
            return record
        try:
            return replace(record, eval_loss=self.evaluate().loss)
        except DroppedError:
            return record

    def evaluate(self) -> Evaluated:
        """The mean loss of the batches of an evaluation; the run is as before. Collective.

        Raises:
            DroppedError: what stands around the evaluation has ended it.
            RunError: SH0605, no evaluation is stated, or there are no batches for it.
        """
        if self.evaluating is None:
            raise RunError(
                "SH0605",
                "nothing says what to evaluate on",
                help="write `evaluate every 500 batches 20`, or give `evaluating`",
            )
        with concerning("evaluate"):
            return evaluate(self.trainee, self.evaluating, self._around_evaluation)

    def state(self) -> dict[str, Part]:
        """What `Checkpoints` save and resume the run by, as it is after the last step.

        The batch that a loop has read and not used yet is not counted. The generators come last,
        since going to a place in the data may draw.
        """
        return {
            "model": self.trainee.module,
            "optimizer": self.optimizer.shown,
            "learning_rate": self.learning_rate,
            "data": Given(lambda: self._place, self._go_to),
            "trainer": Given(lambda: {"step": self.step_number}, self._count_from),
            "random": RandomStates(),
        }

    def _go_to(self, place: dict[str, object]) -> None:
        with concerning("data"):
            self._stream.load_state_dict(place)
        self._place = self._stream.state_dict()
        self._places.clear()

    def _count_from(self, counts: dict[str, object]) -> None:
        step = counts["step"]
        assert isinstance(step, int), "a checkpoint counts its steps"
        self.step_number = step


def _check_trainable(trainee: Trainee) -> None:
    if trainee.has_loss and not any(p.requires_grad for p in trainee.module.parameters()):
        raise RunError(
            "SH0631",
            "the model has no parameter that can be trained",
            help="let one have `requires_grad`; `shardlang verify` compares outputs without",
        )
