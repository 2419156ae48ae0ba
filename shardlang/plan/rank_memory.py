"""The memory of a step of several microbatches on the fullest device of a rank."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from shardlang.cost.composition import Kind, left_in, over_time
from shardlang.cost.memory import leaf_bytes
from shardlang.cost.pipeline.composition import kinds_on_rank
from shardlang.cost.pipeline.memory import OnDevice, accumulated_memory
from shardlang.cost.update import UpdateCost
from shardlang.ir.accumulated import AccumulatedStep
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.node import info
from shardlang.ir.optimizers import UpdateRule
from shardlang.ir.pipeline.action import Work
from shardlang.ir.precision import Precision
from shardlang.ir.program import LocalProgram
from shardlang.passes.step.update_cost import update_cost
from shardlang.plan.moments import Memory, Moment, Phase
from shardlang.plan.update_moments import update_moments


def accumulated_memory_of(
    program: LocalProgram, step: AccumulatedStep, rule: UpdateRule, precision: Precision
) -> Memory:
    """The memory of a step without a pipeline, on the device that needs the most.

    Args:
        rule: the optimizer.
        precision: the types that are stated.
    """
    updated = [leaf for leaf in program.leaves if leaf.name in step.reduce.gives]
    update = update_cost(program, updated, rule, precision)
    leaves = [leaf for leaf in program.leaves if leaf.kind is not LeafKind.INPUT]
    return rank_memory(accumulated_memory(step, update), leaves, update)


def rank_memory(found: OnDevice, leaves: Sequence[Leaf], update: UpdateCost) -> Memory:
    """What a rank's actions and its update make of the memory of a device.

    Args:
        leaves: the rank's parameters, buffers and constants.
    """
    params = [leaf for leaf in leaves if leaf.kind is LeafKind.PARAM]
    others = [leaf for leaf in leaves if leaf.kind is not LeafKind.PARAM]
    return Memory(
        params_bytes=leaf_bytes(params, found.coord),
        buffers_bytes=leaf_bytes(others, found.coord),
        gradients_bytes=sum(found.memory.storages[n].bytes for n in found.memory.gradients),
        optimizer_bytes=update.state_bytes(found.coord),
        optimizer_name=update.rule.title,
        peak_bytes=update.peak(found.memory, found.coord),
        measure=functools.cache(lambda: tuple(_moments(found, update))),
    )


def _moments(found: OnDevice, update: UpdateCost) -> Iterator[Moment]:
    """The moments of a step, beside an optimizer's states."""
    memory, phase = found.memory, Phase.FORWARD
    begins, kinds = dict(memory.begins), kinds_on_rank(memory)
    state = update.state_bytes(found.coord)
    pairs = zip(memory.statements, over_time(memory, kinds), strict=True)
    for number, (statement, held) in enumerate(pairs):
        if number in begins:
            action = begins[number]
            forward = action is not None and action.work is Work.FORWARD
            phase = Phase.FORWARD if forward else Phase.BACKWARD
        node = statement.node
        module, name = (info(node).module, node.name) if node is not None else ("", "")
        yield Moment(phase, module, name, {k: held[k] for k in Kind} | {Kind.OPTIMIZER: state})
    yield from update_moments(update, memory, found.coord, left_in(memory, kinds))
