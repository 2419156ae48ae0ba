"""write_step: from the forward program to the step program that is proven and run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from shardlang.ir.accumulated import MICROBATCH, AccumulatedStep
from shardlang.ir.collection import rarely_collected
from shardlang.ir.program import LocalProgram, differentiable
from shardlang.ir.step import StepProgram
from shardlang.ir.step_options import StepOptions
from shardlang.passes.step.check_step import check_step
from shardlang.passes.step.differentiate import differentiate
from shardlang.passes.step.microbatches import split_microbatches
from shardlang.passes.step.recompute import recompute
from shardlang.passes.step.regather import regather
from shardlang.passes.step.schedule import schedule

StepPass = Callable[[StepProgram, StepOptions], StepProgram]

STEP_PASSES: tuple[StepPass, ...] = (recompute, regather, schedule)
"""The passes on the program that `differentiate` has written, in order."""

NAMES = (differentiate.__name__, *(one.__name__ for one in STEP_PASSES))
"""What writes a step program, in order, by name."""


@rarely_collected()
def write_step(
    program: LocalProgram,
    trained: Collection[str],
    given: Collection[str],
    last: str | None = None,
) -> StepProgram:
    """Forward and backward in one graph, the forward the same whatever results are `given`.

    Args:
        trained: the leaves whose gradients are returned, by name.
        given: the results whose cotangents are given, by name.
        last: the pass after which it ends, one of `NAMES`; the last of them if not given.

    Raises:
        InvariantError: the step program is not whole after a pass.
    """
    ends = differentiable(program) if trained else ()
    return _passed(differentiate(program, trained, given, ends), program.step, last)


def write_accumulated(
    program: LocalProgram, trained: Collection[str], last: str | None = None
) -> AccumulatedStep:
    """A step of several microbatches, of a program with an axis of them, from the loss alone.

    Args:
        last: the pass after which what is done for each microbatch ends, as in `write_step`.

    Raises:
        ShardError: SH0409, an op needs all microbatches at once.
        InvariantError: the step program is not whole after a pass.
    """
    assert program.loss is not None, "what is accumulated is the gradient of a loss"
    ends = (program.loss,)
    step = differentiate(program, trained, ends, ends)
    check_step(step, differentiate.__name__)
    split = split_microbatches(
        step, program.mesh[MICROBATCH], program.loss, program.step.precision.reduce
    )
    return replace(split, main=_passed(split.main, program.step, last))


def _passed(step: StepProgram, options: StepOptions, last: str | None) -> StepProgram:
    """The program after all passes, or after one of them."""
    check_step(step, differentiate.__name__)
    count = len(STEP_PASSES) if last is None else NAMES.index(last)
    for one in STEP_PASSES[:count]:
        step = one(step, options)
        check_step(step, one.__name__)
    return step
