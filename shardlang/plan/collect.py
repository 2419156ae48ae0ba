"""From a program to its plan: one row per tensor and per collective call."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from shardlang.ir.accumulated import MICROBATCH, AccumulatedStep
from shardlang.ir.leaf import LeafKind, ResultKind
from shardlang.ir.mesh import joined
from shardlang.ir.optimizers import ASSUMED, UpdateRule
from shardlang.ir.pipeline.staged import StagedStep
from shardlang.ir.program import LocalProgram
from shardlang.plan.accumulated import accumulated_parts, pipeline_parts
from shardlang.plan.calls import Part, Rows, step_parts, update_parts
from shardlang.plan.groups import groups_of
from shardlang.plan.memory import memory_of, step_to_measure
from shardlang.plan.moments import Memory
from shardlang.plan.names import Names
from shardlang.plan.rank_memory import accumulated_memory_of
from shardlang.plan.recomputed import recomputed_of
from shardlang.plan.stage_types import PipelinePlan
from shardlang.plan.types import Plan, Stretch, TensorRow, Value
from shardlang.plan.values import module_values

if TYPE_CHECKING:
    from shardlang.compiler.driver import Compiled


def make_plan(
    program: LocalProgram,
    values: Mapping[str, Value] | None = None,
    rule: UpdateRule = ASSUMED,
    train: bool = True,
    accumulated: AccumulatedStep | None = None,
    stages: tuple[StagedStep, PipelinePlan] | None = None,
    along: tuple[LocalProgram, Rows] | None = None,
) -> Plan:
    """The plan of a program.

    Args:
        values: the modules' own tensors by name (`model.norm.out`).
        rule: the optimizer.
        train: whether there is a backward at all.
        accumulated: the step where it has several microbatches.
        stages: the step where several stages compute it, and what they cost.
        along: the program along its microbatches, and its calls, if the step has several.
    """
    found = dict(values or {})
    names = Names.of(program, {value.node: name for name, value in reversed(found.items())})
    written = functools.cache(functools.partial(step_to_measure, program, train))
    assert (along is None) == (stages is None and accumulated is None), "said by the same program"
    if stages is not None and along is not None:
        parts = pipeline_parts(stages[0], along[1], program.mesh[stages[1].axis])
    elif accumulated is not None and along is not None:
        parts = accumulated_parts(accumulated, along[1])
    else:
        parts = step_parts(program, names, written()[0])
    pipeline, precision = None if stages is None else stages[1], program.step.precision
    parts += update_parts(program, names, rule, pipeline) if train else []
    rows = tuple(row for made, _ in parts for row in made)
    if along is None:
        recomputed = recomputed_of(program, lambda: written()[0], train)
    else:
        step = functools.partial(step_to_measure, along[0], train)
        recomputed = recomputed_of(along[0], lambda: step()[0], train, _microbatches(along[0]))

    def measure() -> Memory:
        if pipeline is not None:
            return max(pipeline.memories, key=lambda one: one.peak_bytes)
        if accumulated is not None:
            return accumulated_memory_of(program, accumulated, rule, precision)
        return memory_of(program, *written(), rule, precision)

    return Plan(
        program.mesh,
        frozenset(axis.name for axis in joined(sorted(program.data_axes))),
        (*_leaves(program), *_values(found), *_results(program)),
        rows,
        functools.cache(measure),
        recomputed,
        tuple(_stretches(parts)),
        groups_of(program, rule) if train else (),
        pipeline,
    )


def plan_of(compiled: Compiled) -> Plan:
    """The plan of a compiled spec.

    Raises:
        CompileError: the batch cannot be cut into microbatches, or the model into stages.
    """
    from shardlang.compiler.accumulate import accumulated, accumulated_step
    from shardlang.compiler.pipelined import pipelined
    from shardlang.plan.stages import pipeline_plan

    program, rule = compiled.program, compiled.rule
    values = module_values(compiled.captured, compiled.graph)
    stated = compiled.spec.accumulate
    if not (stated is not None and stated.count > 1 and compiled.train and program.loss):
        return make_plan(program, values, rule, compiled.train)
    if compiled.spec.pipeline is not None:
        made = pipelined(compiled)
        stages = made.step, pipeline_plan(compiled, made)
        rows = _rows_of(made.along)
        return make_plan(program, values, rule, compiled.train, stages=stages, along=rows)
    along = accumulated(compiled)
    step, rows = accumulated_step(along), _rows_of(along)
    return make_plan(program, values, rule, compiled.train, step, along=rows)


def _microbatches(along: LocalProgram) -> int:
    return next(axis.size for axis in along.mesh.axes if axis.name == MICROBATCH)


def _rows_of(along: Compiled) -> tuple[LocalProgram, Rows]:
    """The program along the microbatches of a spec, and its calls."""
    values = module_values(along.captured, along.graph)
    names = {value.node: name for name, value in reversed(values.items())}
    return along.program, Rows(along.program, Names.of(along.program, names))


def _stretches(parts: Iterable[Part]) -> Iterator[Stretch]:
    """Where the rows of each part stand."""
    first = 0
    for rows, times in parts:
        yield Stretch(first, first + len(rows), times)
        first += len(rows)


def _leaves(program: LocalProgram) -> Iterator[TensorRow]:
    for leaf in program.leaves:
        if leaf.kind in (LeafKind.PARAM, LeafKind.BUFFER, LeafKind.INPUT):
            yield TensorRow(
                leaf.name, leaf.kind, leaf.dtype, leaf.at_rest.unlabelled(), leaf.trainable
            )


def _values(values: Mapping[str, Value]) -> Iterator[TensorRow]:
    for name, value in values.items():
        yield TensorRow(
            name, "value", value.dtype, value.layout.unlabelled(), expected=value.expected
        )  # fmt: skip


def _results(program: LocalProgram) -> Iterator[TensorRow]:
    for result in program.results:
        if result.kind is ResultKind.OUTPUT:
            yield TensorRow(result.name, "output", result.dtype, result.layout.unlabelled())
