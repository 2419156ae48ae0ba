"""A step of several microbatches without a pipeline, as one stage that has one rank to itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from shardlang.cost.effects import Call
from shardlang.cost.pipeline.ends import Ends
from shardlang.ir.accumulated import AccumulatedStep
from shardlang.ir.pipeline.action import Action, Work
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.ir.pipeline.stage import StageProgram
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.runtime.stages.shared import Lies, Round


def one_stage(step: AccumulatedStep) -> StagedStep:
    """The step as a pipeline of one stage, which gets nothing of others and gives them nothing."""
    return StagedStep(step, (StageProgram(0, step.main, {}, {}, {}, {}),), (step.reduce,), {})


def in_turn(microbatches: int) -> PipelineSchedule:
    """Forward and backward of one microbatch after the other."""
    works = (Work.FORWARD, Work.BACKWARD)
    return PipelineSchedule((tuple(Action(0, w, i) for i in range(microbatches) for w in works),))


class NobodyElse(Ends):
    """The end of a step whose rank has nobody to tell anything."""

    def __init__(self, step: StagedStep) -> None:
        self.round = Round.of(step)

    def share(self, lies: Lies, mine: Sequence[str]) -> Call:
        """All values are this rank's own, and stay as they are."""
        return Call(_same, (_same, tuple(mine)))


def _same(*xs: Tensor) -> tuple[Tensor, ...]:
    return xs
