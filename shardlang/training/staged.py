"""Training with a pipeline: every device runs its stages on the microbatches of a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from shardlang.compiler.driver import Compiled
from shardlang.compiler.pipelined import along_stages, axis_of, pipelined_along, schedule_of
from shardlang.cost.shapes import Shapes, shapes_of
from shardlang.ir.leaf import Leaf
from shardlang.ir.pipeline.stage_text import stage_fingerprints
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.runtime.accumulate import differ_nowhere
from shardlang.runtime.checks import check_same_text
from shardlang.runtime.data import Batch
from shardlang.runtime.held import Held
from shardlang.runtime.stages.clock import ActionClock
from shardlang.runtime.stages.pipeline import Pipeline
from shardlang.runtime.stages.running import Leaves, Plan
from shardlang.runtime.trainer.records import Record
from shardlang.runtime.trainer.trainer import Trainer
from shardlang.training.accumulated import AccumulatedTrainee, Along

Noted = Callable[[Trainer, Record], None]


class _Staged(Along):
    """The program of a pipeline, for inputs of some shapes."""

    def __init__(self, compiled: Compiled, held: Held, seed: int) -> None:
        """Compile it. Collective.

        Raises:
            CompileError: it cannot be split as stated.
            RunError: SH0602, the ranks hold different programs.
        """
        self._schedule, self._axis = schedule_of(compiled.spec), axis_of(compiled)
        super().__init__(along_stages(compiled), compiled.source, held, seed)
        check_same_text(self._schedule.to_csv(), held.groups)
        self._pipelines: dict[tuple[frozenset[str], bool], Pipeline] = {}

    def pipeline(self, trained: frozenset[str], *, forwards: bool = False) -> Pipeline:
        """The stages of this device for what is trained. Collective.

        Args:
            forwards: only these are run.
        """
        key = trained, forwards
        if key not in self._pipelines:
            made = pipelined_along(self.compiled, self._schedule, self._axis, sorted(trained))
            plan = Plan(made.step, made.schedule, made.axis, made.order, self._shapes(made.step))
            plan = plan.forwards if forwards else plan
            self._pipelines[key] = Pipeline(plan, self._groups, self._regions)
        return self._pipelines[key]

    def _shapes(self, step: StagedStep) -> list[Shapes]:
        """Of each microbatch, how what the stages send lies on this device."""
        whole, groups = step.whole, self._groups
        names = {x for one in step.stages for x in (*one.values, *one.gradients)}
        coords = [{**groups.coord, whole.axis.name: i} for i in range(whole.axis.size)]
        first = shapes_of(whole.main, names, coords[0])
        if differ_nowhere(whole, coords):
            return [first] * len(coords)
        return [first, *(shapes_of(whole.main, names, at) for at in coords[1:])]


class StagedTrainee(AccumulatedTrainee):
    """The model in the stages of a pipeline, of which this device has some."""

    clock: ActionClock | None = None
    """Notes when the actions of a step begin and end."""

    def fingerprints(self) -> list[str]:
        """Those of the stages' programs, by number. Collective."""
        first = self._first
        assert isinstance(first, _Staged)
        return stage_fingerprints(first.pipeline(self._trained()).plan.step)

    def timed(self, folder: Path, step: int) -> tuple[Callable[[Trainer], None], Noted]:
        """What is called before and after every step to write the timeline of one of them.

        Args:
            folder: of the run.
        """
        groups = self._held.groups

        def before(trainer: Trainer) -> None:
            if trainer.step_number + 1 == step:
                self.clock = ActionClock(groups.device)

        def after(trainer: Trainer, record: Record) -> None:
            if self.clock is not None:
                self.clock.write(folder, step, groups.rank)
            self.clock = None

        return before, after

    def _compile(self, compiled: Compiled) -> _Staged:
        return _Staged(compiled, self._held, self._seed)

    def loss(self, batch: Batch) -> Tensor | None:
        """The loss of a whole batch, of the forwards alone. Collective."""
        along = self._staged(batch)
        pipeline = along.pipeline(self._trained(), forwards=True)
        return pipeline(lambda i: self._leaves(pipeline, along, batch, i)).loss

    def backward(self, batch: Batch, scale: float = 1.0) -> Tensor | None:
        """The loss of all microbatches; their gradients are added to those of the parameters."""
        along = self._staged(batch)
        pipeline = along.pipeline(self._trained())
        made = pipeline(lambda i: self._leaves(pipeline, along, batch, i), scale, self.clock)
        for leaf in self._held.program.leaves:
            if leaf.name in pipeline.gradients:
                self._give(leaf, self._gradient(made.gradients, leaf))
        self._write(made.written)
        return made.loss

    def _staged(self, batch: Batch) -> _Staged:
        along = self._for(batch)
        assert isinstance(along, _Staged)
        return along

    def _leaves(self, pipeline: Pipeline, along: Along, batch: Batch, number: int) -> Leaves:
        """What this device's stages read of a microbatch."""
        at, reads = pipeline.coords[number], pipeline.reads
        wanted = (leaf for leaf in along.program.leaves if leaf.name in reads)
        return {leaf.name: self._leaf(leaf, batch, at, along) for leaf in wanted}

    def _gradient(self, gradients: Mapping[str, Tensor], leaf: Leaf) -> Tensor:
        """This device's shard of a gradient: without elements for a parameter of other stages."""
        if leaf.name in gradients:
            return gradients[leaf.name]
        groups = self._held.groups
        shape = leaf.layout.local_shape(groups.coord)
        return torch.zeros(shape, dtype=leaf.dtype, device=groups.device)
