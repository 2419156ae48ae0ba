"""What the backward computes again, decided once for all backwards of a program.

The forward is one text whatever the gradients start from, and so is what it keeps. The choice is
made on the step that starts at the loss, or at all results where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from torch import fx

from shardlang.cost.live import fullest
from shardlang.cost.update import UpdateCost
from shardlang.ir.graph import ShardError
from shardlang.ir.program import LocalProgram, differentiable
from shardlang.ir.rewriter import copy_graph
from shardlang.ir.step import StepProgram
from shardlang.ir.step_options import Recompute, StepOptions
from shardlang.passes.step.choose import NotReached, Peak, cheap_again, fitting
from shardlang.passes.step.cut import Choice
from shardlang.passes.step.differentiate import differentiate
from shardlang.passes.step.write_step import STEP_PASSES


def decide(program: LocalProgram, trained: Collection[str], update: UpdateCost) -> StepOptions:
    """The options of a program's step, with the values that are computed again.

    Args:
        trained: the leaves that are trained, by name.
        update: what follows the backward; its states lie there all the time.

    Raises:
        ShardError: SH0512, no choice fits the budget.
    """
    wanted = program.step.recompute
    if not trained or not (wanted.selective or wanted.budget_bytes):
        return program.step
    step = from_loss(program, trained)

    def peak(again: Collection[fx.Node]) -> int:
        replay = fullest(with_again(step, program.step, again), update=update)
        return update.peak(replay, replay.coord)

    names = sorted(node.name for node in chosen(step, wanted, peak).again)
    return replace(program.step, recompute=replace(wanted, values=tuple(names)))


def from_loss(program: LocalProgram, trained: Collection[str]) -> StepProgram:
    """The step of a program in which nothing is computed again."""
    ends = differentiable(program)
    given = [name for name in ends if program.loss in (None, name)]
    return differentiate(program, trained, given, ends)


def chosen(
    step: StepProgram,
    wanted: Recompute,
    peak: Peak,
    kept: Callable[[Choice], int] | None = None,
) -> Choice:
    """What is computed again in a step.

    Args:
        kept: what a choice takes at the least, in bytes; if not given, the leaves and results
            count, and what the choice keeps.

    Raises:
        ShardError: SH0512, no choice fits the budget.
    """
    modules, budget = wanted.modules, wanted.budget_bytes
    if budget is None:
        return cheap_again(step, modules)
    try:
        return fitting(step, modules, budget, peak, kept)
    except NotReached as failure:
        raise _too_small(budget, failure.least) from failure


def with_again(step: StepProgram, options: StepOptions, again: Collection[fx.Node]) -> StepProgram:
    """A copy of a step that computes some values again, behind all passes."""
    graph, _ = copy_graph(step.graph)
    values = tuple(node.name for node in again)
    options = replace(options, recompute=Recompute(values=values))
    made = replace(step, graph=graph, again={})
    for one in STEP_PASSES:
        made = one(made, options)
    return made


def _too_small(budget: int, least: int) -> ShardError:
    return ShardError(
        "SH0512",
        f"the step does not fit in {budget} bytes: the least peak that computing values again was"
        f" found to reach is {least} bytes on a device",
        help=f"write `recompute to {least}`, or split more of the model or of its inputs",
    )
