"""write_step: from the forward program to the step program that is proven and run."""

from __future__ import annotations

from collections.abc import Collection

from shardlang.ir.program import LocalProgram, differentiable
from shardlang.ir.step import StepProgram
from shardlang.passes.step.differentiate import differentiate
from shardlang.passes.step.regather import regather


def write_step(
    program: LocalProgram, trained: Collection[str], given: Collection[str]
) -> StepProgram:
    """Forward and backward in one graph, the forward the same whatever results are `given`.

    Args:
        trained: the leaves whose gradients are returned, by name.
        given: the results whose cotangents are given, by name.
    """
    ends = differentiable(program) if trained else ()
    return regather(differentiate(program, trained, given, ends))
