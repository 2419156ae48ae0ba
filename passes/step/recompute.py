"""recompute: compute values of the forward again in the backward, instead of keeping them.

Which values these are beside those of modules, `decide` says; how they are made again, `again`.
"""

from __future__ import annotations

from shardlang.ir.step import StepProgram
from shardlang.ir.step_options import StepOptions
from shardlang.passes.step.again import make_again
from shardlang.passes.step.regions import inside_modules


def recompute(program: StepProgram, options: StepOptions) -> StepProgram:
    """Let the backward compute again what the options say."""
    named, modules = set(options.recompute.values), options.recompute.modules
    again = {node for node in program.graph.nodes if node.name in named}
    if modules:
        again |= inside_modules(program, modules)
    if again:
        make_again(program, again)
    return program
