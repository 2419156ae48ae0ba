"""The learning rate from step to step: a scheduler of torch on the optimizer that is shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from shardlang.ir.schedules import PHASES, Phase, factor, made


class LearningRate:
    """The schedule that a spec states; without one the rate stays as the optimizer has it.

    Attributes:
        scheduler: the scheduler of torch; None where there is no schedule.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, phases: Sequence[Phase]) -> None:
        """Set the rate of the first step."""
        self._optimizer = optimizer
        self.scheduler: LRScheduler | None = None
        if phases and phases[0].name in PHASES:
            self.scheduler = LambdaLR(optimizer, factor(phases, optimizer.defaults["lr"]))
        elif phases:
            self.scheduler = made(phases[0].name, optimizer, phases[0].arguments)

    @property
    def rate(self) -> float:
        """The rate of the next step, of the first group of parameters."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """Set the rate of the next step, after one of the optimizer."""
        if self.scheduler is not None:
            self.scheduler.step()

    def state_dict(self) -> dict[str, object]:
        """The state of the scheduler; the rates themselves are settings of the optimizer."""
        return {} if self.scheduler is None else dict(self.scheduler.state_dict())

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on from a state."""
        if self.scheduler is not None and state_dict:
            self.scheduler.load_state_dict(state_dict)
