"""The learning rate from step to step: a scheduler of torch on the optimizer that is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from shardlang.ir.schedules import PHASES, Phase, ends_before, factor, made
from shardlang.runtime.errors import RunError


class LearningRate:
    """The schedule that a spec states; without one the rate stays as the optimizer has it.

    Attributes:
        scheduler: the scheduler of torch; None where there is no schedule.
        phases: the schedule as it is stated.
        steps: how many steps of the optimizer have been taken; a skipped one is none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, phases: Sequence[Phase]) -> None:
        """Set the rate of the first step."""
        self._optimizer, self.phases, self.steps = optimizer, tuple(phases), 0
        self._stated = [float(group["lr"]) for group in optimizer.param_groups]
        self._factor = factor(phases, optimizer.defaults["lr"]) if self._is_ours else None
        self.scheduler: LRScheduler | None = None
        if phases and self._factor is not None:
            self.scheduler = LambdaLR(optimizer, self._factor)
        elif phases:
            self.scheduler = made(phases[0].name, optimizer, phases[0].arguments)

    @property
    def _is_ours(self) -> bool:
        """Whether the rate of a step follows from its number alone."""
        return not self.phases or self.phases[0].name in PHASES

    @property
    def rate(self) -> float:
        """The rate of the next step, of the first group of parameters."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """Set the rate of the next step, after one of the optimizer."""
        self.steps += 1
        if self.scheduler is not None:
            self.scheduler.step()

    def state_dict(self) -> dict[str, object]:
        """The steps taken, the schedule in words, and the state of a scheduler of torch's own."""
        own = {} if self._is_ours or self.scheduler is None else dict(self.scheduler.state_dict())
        return {"steps": self.steps, "schedule": self._words(), "scheduler": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, after the optimizer, which has the rates that were.

        Another schedule of our phases, or none, has the rate that it gives the next step.

        Raises:
            RunError: SH0665, a scheduler of torch by name, now or then, is another one.
        """
        self.steps, before = int(state_dict["steps"]), str(state_dict["schedule"])
        if before == self._words() and not self._is_ours:
            assert self.scheduler is not None
            self.scheduler.load_state_dict(state_dict["scheduler"])
        elif state_dict["scheduler"] or self._factor is None:
            raise RunError(
                "SH0665",
                f"`learning_rate` was {before or 'not stated'} and is {self._words() or 'not'}:"
                " a scheduler of torch goes on from its own state alone",
                help="resume with the `learning_rate` of the run, or write phases of shardlang:"
                " `warmup`, `constant`, `linear` and `cosine` may take the place of each other",
                about="learning_rate",
            )
        elif self.phases or before:
            self._set_rates()

    def _set_rates(self) -> None:
        """Set the rates of the next step, as the schedule gives them."""
        assert self._factor is not None
        groups = self._optimizer.param_groups
        for group, stated in zip(groups, self._stated, strict=True):
            group["lr"] = stated * self._factor(self.steps)
        if self.scheduler is not None:
            self.scheduler.last_epoch = self.steps
            self.scheduler.base_lrs = list(self._stated)

    def _words(self) -> str:
        """The schedule, as a spec states it."""
        return " ".join(
            f"{phase.name}({', '.join(f'{key} = {x}' for key, x in phase.arguments.items())})"
            for phase in self.phases
        )


def check_lasts(phases: Sequence[Phase], steps: int) -> None:
    """Make sure that a schedule has a rate up to a step, counted from the first of the run.

    Phases of our own always have: the last rate stays.

    Raises:
        RunError: SH0646, a scheduler of torch ends before.
    """
    if not phases or phases[0].name in PHASES:
        return
    said = ends_before(phases[0].name, phases[0].arguments, steps)
    if said:
        raise RunError(
            "SH0646",
            f"`{phases[0].name}` ends before step {steps}: {said}",
            help="state as many steps as the run takes, or take fewer",
            about="learning_rate",
        )
