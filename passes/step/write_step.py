"""write_step: from the forward program to the step program that is proven and run."""

from __future__ import annotations

from collections.abc import Callable, Collection

from shardlang.ir.program import LocalProgram, differentiable
from shardlang.ir.step import StepProgram
from shardlang.ir.step_options import StepOptions
from shardlang.passes.step.check_step import check_step
from shardlang.passes.step.differentiate import differentiate
from shardlang.passes.step.recompute import recompute
from shardlang.passes.step.regather import regather
from shardlang.passes.step.schedule import schedule

StepPass = Callable[[StepProgram, StepOptions], StepProgram]

STEP_PASSES: tuple[StepPass, ...] = (recompute, regather, schedule)
"""The passes on the program that `differentiate` has written, in order."""


def write_step(
    program: LocalProgram, trained: Collection[str], given: Collection[str]
) -> StepProgram:
    """Forward and backward in one graph, the forward the same whatever results are `given`.

    Args:
        trained: the leaves whose gradients are returned, by name.
        given: the results whose cotangents are given, by name.

    Raises:
        InvariantError: the step program is not whole after a pass.
    """
    ends = differentiable(program) if trained else ()
    step = differentiate(program, trained, given, ends)
    check_step(step, differentiate.__name__)
    for one in STEP_PASSES:
        step = one(step, program.step)
        check_step(step, one.__name__)
    return step
