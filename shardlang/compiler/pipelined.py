"""The step of a pipeline: the stages of a spec, and the actions of every device along its axis."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from shardlang.compiler.accumulate import accumulated, accumulated_step
from shardlang.compiler.driver import Compiled, CompileError
from shardlang.cost.timeline import timeline
from shardlang.grammar.diagnostics import error
from shardlang.ir.mesh import Axis
from shardlang.ir.pipeline.schedule import PipelineSchedule, ScheduleError
from shardlang.ir.pipeline.split import Split
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.passes.schedules.dualpipe_v import dualpipe_v
from shardlang.passes.schedules.plain import gpipe, interleaved_1f1b, one_f_one_b
from shardlang.passes.schedules.zero_bubble import alike, v_half, zb_h1, zbv
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


def pipelined(compiled: Compiled, trained: Collection[str] | None = None) -> Pipelined:
    """The step of a spec with a pipeline.

    Args:
        trained: the parameters whose gradients it gives; what the model trains if not given.

    Raises:
        CompileError: the model cannot be split so, or the schedule does not fit.
    """
    schedule = schedule_of(compiled.spec)
    along = accumulated(compiled, split_of(compiled, schedule.stages))
    step = staged(accumulated_step(along, trained), schedule.stages)
    return Pipelined(along, step, schedule, axis_of(compiled))


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
        made = SCHEDULES[stated.schedule](ranks, spec.accumulate.count, stated.virtual)
        timeline(made, alike)
    except ScheduleError as failure:
        raise CompileError([error("SH0260", str(failure), stated.schedule_span)]) from failure
    return made


def split_of(compiled: Compiled, stages: int) -> Split:
    """The stages of the model."""
    layers = _stated(compiled.spec).layers
    count = sum(1 for name in compiled.captured.modules if _is_layer(name, layers.text))
    return Split.evenly(layers.text, count, stages)


def _is_layer(name: str, layers: str) -> bool:
    owner, _, number = name.rpartition(".")
    return owner == layers and number.isdigit()


def _stated(spec: Spec) -> PipelineDecl:
    assert spec.pipeline is not None, "the spec states a pipeline"
    return spec.pipeline
