"""recompute: compute values of the forward again in the backward, instead of keeping them.

Which values these are, `recomputed` decides; how they are made again, `again`.
"""

from __future__ import annotations

from shardlang.ir.step import StepProgram
from shardlang.ir.step_options import StepOptions
from shardlang.passes.step.again import make_again
from shardlang.passes.step.regions import inside_modules


def recompute(program: StepProgram, options: StepOptions) -> StepProgram:
    """Let the backward compute again what the options say."""
    if options.recompute.modules:
        make_again(program.graph, inside_modules(program, options.recompute.modules))
    return program
