"""What a step of several microbatches computes again, so that it stays within a budget of bytes.

Its peak is that of all microbatches in the order of the schedule, with the gradients that are
summed in between: not that of one microbatch, and not that of the whole batch at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from torch import fx

from shardlang.compiler.at_model import at_model
from shardlang.compiler.driver import Compiled, CompileError
from shardlang.cost.pipeline.memory import accumulated_memory, rank_memories
from shardlang.cost.update import UpdateCost
from shardlang.ir.accumulated import AccumulatedStep
from shardlang.ir.graph import ShardError
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.mesh import Axis
from shardlang.ir.pipeline.action import Action
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.ir.step_options import Recompute
from shardlang.passes.step.cut import Choice
from shardlang.passes.step.decide import chosen, from_loss
from shardlang.passes.step.split_stages import staged
from shardlang.passes.step.update_cost import update_cost
from shardlang.passes.step.write_step import write_accumulated

PeakOf = Callable[[AccumulatedStep], int]
"""The bytes that a step of several microbatches needs on the device that needs the most."""


def fitted(along: Compiled, peak_of: PeakOf, kept: Callable[[Choice], int]) -> Compiled:
    """The program along microbatches, with the choice for its budget of `recompute`, if it has one.

    Args:
        kept: what a choice takes at the least, in bytes.

    Raises:
        CompileError: SH0512, no choice fits the budget; SH0409, an op needs all microbatches.
    """
    program = along.program
    options, trained = program.step, [leaf.name for leaf in program.leaves if leaf.trainable]
    budget = options.recompute.budget_bytes
    if budget is None or program.loss is None or not along.train or not trained:
        return along

    def peak(again: Collection[fx.Node]) -> int:
        values = tuple(node.name for node in again)
        tried = replace(program, step=replace(options, recompute=Recompute(values=values)))
        return peak_of(write_accumulated(tried, trained))

    try:
        again = chosen(from_loss(program, trained), options.recompute, peak, kept).again
    except ShardError as failure:
        raise CompileError([at_model(failure, along.spec)]) from failure
    values = tuple(sorted(node.name for node in again))
    options = replace(options, recompute=replace(options.recompute, values=values))
    statements = replace(along.statements, step=options)
    return replace(along, program=replace(program, step=options), statements=statements)


def in_turn_within(along: Compiled) -> Compiled:
    """The same for microbatches that one device computes one after the other.

    Raises:
        CompileError: SH0512, no choice fits the budget; SH0409, an op needs all microbatches.
    """
    update = _update(along, [leaf for leaf in along.program.leaves if leaf.trainable])

    def peak(step: AccumulatedStep) -> int:
        found = accumulated_memory(step, update)
        return update.peak(found.memory, found.coord)

    return fitted(along, peak, lambda choice: choice.bytes)


def in_stages_within(
    along: Compiled, schedule: PipelineSchedule, order: Sequence[Action], axis: Axis
) -> Compiled:
    """The same for the stages of a pipeline, each rank with the microbatches in flight on it.

    Raises:
        CompileError: SH0512, no choice fits the budget; SH0409, an op needs all microbatches.
    """
    rank_of = schedule.rank_of()

    def peak(step: AccumulatedStep) -> int:
        split = staged(step, schedule.stages)
        own: dict[int, list[Leaf]] = {rank: [] for rank in range(len(schedule.ranks))}
        for stage in split.stages:
            rank = rank_of[stage.number]
            own[rank] += [x.held_at(axis, rank) for x in stage.step.leaves if _is_own(x)]
        updates = [_update(along, leaves) for leaves in own.values()]
        found = rank_memories(split, schedule, order, axis, updates)
        pairs = zip(updates, found, strict=True)
        return max(update.peak(one.memory, one.coord) for update, one in pairs)

    return fitted(along, peak, lambda choice: 0)


def _is_own(leaf: Leaf) -> bool:
    """Whether it is a trained parameter that lies in its stage between steps."""
    return leaf.kind is LeafKind.PARAM and leaf.tied is None and leaf.trainable


def _update(along: Compiled, leaves: Sequence[Leaf]) -> UpdateCost:
    """What the update of some parameters takes."""
    return update_cost(along.program, leaves, along.rule, along.program.step.precision)
