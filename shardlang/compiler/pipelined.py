"""The step of a pipeline: the stages of a spec, and the actions of every device along its axis."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from shardlang.compiler.accumulate import accumulated_step, along_microbatches
from shardlang.compiler.at_model import at_model
from shardlang.compiler.driver import Compiled, CompileError
from shardlang.compiler.fit_microbatches import in_stages_within
from shardlang.compiler.stages import split_of
from shardlang.cost.timeline import alike, timeline
from shardlang.grammar.diagnostics import error
from shardlang.ir.graph import ShardError
from shardlang.ir.mesh import Axis
from shardlang.ir.pipeline.action import Action
from shardlang.ir.pipeline.schedule import PipelineSchedule, ScheduleError
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.passes.schedules.dualpipe_v import dualpipe_v
from shardlang.passes.schedules.plain import gpipe, interleaved_1f1b, one_f_one_b
from shardlang.passes.schedules.zero_bubble import v_half, zb_h1, zbv
from shardlang.passes.step.split_stages import staged
from shardlang.spec.types import PipelineDecl, Spec

SCHEDULES: dict[str, Callable[[int, int, int], PipelineSchedule]] = {
    "gpipe": lambda ranks, count, _: gpipe(ranks, count),
    "1f1b": lambda ranks, count, _: one_f_one_b(ranks, count),
    "interleaved_1f1b": interleaved_1f1b,
    "zb_h1": lambda ranks, count, _: zb_h1(ranks, count),
    "zbv": lambda ranks, count, _: zbv(ranks, count),
    "v_half": lambda ranks, count, _: v_half(ranks, count),
    "dualpipe_v": lambda ranks, count, _: dualpipe_v(ranks, count),
}
"""By name: ranks, microbatches and stages for each rank to the schedule."""


@dataclass(frozen=True, slots=True)
class Pipelined:
    """What the devices along an axis compute in a step.

    Attributes:
        along: the program along the microbatches, every op of which has a stage.
        axis: of the pipeline; its coordinate is the rank of the schedule.
    """

    along: Compiled
    step: StagedStep
    schedule: PipelineSchedule
    axis: Axis

    @property
    def order(self) -> tuple[Action, ...]:
        """All actions, in an order in which they can be done one after the other."""
        return timeline(self.schedule, alike).order


def pipelined(compiled: Compiled, trained: Collection[str] | None = None) -> Pipelined:
    """The step of a spec with a pipeline.

    Args:
        trained: the parameters whose gradients it gives; what the model trains if not given.

    Raises:
        CompileError: the model cannot be split so, or the schedule does not fit.
    """
    check_pipeline(compiled)
    schedule = schedule_of(compiled.spec)
    return pipelined_along(along_stages(compiled), schedule, axis_of(compiled), trained)


def along_stages(compiled: Compiled) -> Compiled:
    """The program along its microbatches, every op of which has a stage, within its budget.

    Raises:
        CompileError: the model cannot be split so, or the schedule does not fit.
    """
    schedule = schedule_of(compiled.spec)
    along = along_microbatches(compiled, split_of(compiled, schedule.stages))
    order = timeline(schedule, alike).order
    return in_stages_within(along, schedule, order, axis_of(compiled))


def pipelined_along(
    along: Compiled,
    schedule: PipelineSchedule,
    axis: Axis,
    trained: Collection[str] | None = None,
) -> Pipelined:
    """The same, of the program along the microbatches; what is trained is so in all its stages.

    Raises:
        CompileError: SH0409, an op needs all microbatches at once; SH0410, a draw of
            one stage cannot be followed by others.
    """
    if trained is not None:
        leaves, names = along.program.leaves, set(trained)
        trained = [leaf.name for leaf in leaves if (leaf.tied or leaf.name) in names]
    try:
        step = staged(accumulated_step(along, trained), schedule.stages)
    except ShardError as failure:
        raise CompileError([at_model(failure, along.spec)]) from failure
    return Pipelined(along, step, schedule, axis)


def axis_of(compiled: Compiled) -> Axis:
    """The mesh axis of the pipeline."""
    return compiled.program.mesh[_stated(compiled.spec).axis]


def schedule_of(spec: Spec) -> PipelineSchedule:
    """The schedule that a spec states.

    Raises:
        CompileError: it does not fit the mesh or the microbatches, or ranks wait for each other.
    """
    stated = _stated(spec)
    assert spec.accumulate is not None, "a pipeline has microbatches"
    ranks = spec.mesh[stated.axis].size
    try:
        made = stated.actions
        if made is None:
            made = SCHEDULES[stated.schedule](ranks, spec.accumulate.count, stated.virtual)
        timeline(made, alike)
    except ScheduleError as failure:
        help = "state other microbatches, or another schedule"
        if stated.actions is not None:
            help = "give one of these ranks another order: its row of the file"
        found = error("SH0260", str(failure), stated.schedule_span, help=help)
        raise CompileError([found]) from failure
    return made


def check_pipeline(compiled: Compiled) -> None:
    """Look for what stands in the way of a stated pipeline, as far as the whole model shows it.

    Raises:
        CompileError: the model is not trained, or cannot be split so, or the schedule does not fit.
    """
    stated = compiled.spec.pipeline
    if stated is None:
        return
    if not compiled.train:
        message, help = "a pipeline computes training steps, and the model is in mode `eval`", (
            "remove `mode`, or the pipeline"
        )  # fmt: skip
        raise CompileError([error("SH0314", message, stated.span, help=help)])
    if compiled.statements.loss is None:
        message = "a pipeline computes training steps, and the model has no loss"
        help = "name the output that is the loss with `loss`, or remove the pipeline"
        raise CompileError([error("SH0314", message, stated.span, help=help)])
    split_of(compiled, schedule_of(compiled.spec).stages)


def _stated(spec: Spec) -> PipelineDecl:
    assert spec.pipeline is not None, "the spec states a pipeline"
    return spec.pipeline
