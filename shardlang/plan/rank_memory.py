"""The memory of a step of several microbatches on the fullest device of a rank."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch

from shardlang.cost.composition import Kind
from shardlang.cost.memory import leaf_bytes, state_bytes
from shardlang.cost.pipeline.composition import rank_compositions
from shardlang.cost.pipeline.memory import OnDevice, accumulated_memory
from shardlang.ir.accumulated import AccumulatedStep
from shardlang.ir.leaf import Leaf, LeafKind
from shardlang.ir.mesh import Coord
from shardlang.ir.node import info
from shardlang.ir.optimizers import UpdateRule
from shardlang.ir.pipeline.action import Work
from shardlang.ir.program import LocalProgram
from shardlang.plan.moments import Memory, Moment, Phase


def accumulated_memory_of(
    program: LocalProgram, step: AccumulatedStep, rule: UpdateRule, master: torch.dtype | None
) -> Memory:
    """The memory of a step without a pipeline, on the device that needs the most.

    Args:
        rule: the optimizer.
        master: the type of the master weights of narrower parameters.
    """
    updated = [leaf for leaf in program.leaves if leaf.name in step.reduce.gives]

    def state(coord: Coord) -> int:
        return state_bytes(updated, coord, rule, master)

    found = accumulated_memory(step, state)
    leaves = [leaf for leaf in program.leaves if leaf.kind is not LeafKind.INPUT]
    return rank_memory(found, leaves, state(found.coord), rule)


def rank_memory(
    found: OnDevice, leaves: Sequence[Leaf], state_bytes: int, rule: UpdateRule
) -> Memory:
    """What a rank's actions make of the memory of a device, beside an optimizer's states.

    Args:
        leaves: the rank's parameters, buffers and constants.
    """
    params = [leaf for leaf in leaves if leaf.kind is LeafKind.PARAM]
    others = [leaf for leaf in leaves if leaf.kind is not LeafKind.PARAM]
    return Memory(
        params_bytes=leaf_bytes(params, found.coord),
        buffers_bytes=leaf_bytes(others, found.coord),
        gradients_bytes=sum(found.memory.storages[n].bytes for n in found.memory.gradients),
        optimizer_bytes=state_bytes,
        optimizer_name=rule.title,
        peak_bytes=found.memory.peak + state_bytes,
        measure=functools.cache(lambda: tuple(_moments(found, state_bytes))),
    )


def _moments(found: OnDevice, state: int) -> Iterator[Moment]:
    """The moments of a step, beside an optimizer's states."""
    memory, phase = found.memory, Phase.FORWARD
    begins = dict(memory.begins)
    pairs = zip(memory.statements, rank_compositions(memory), strict=True)
    for number, (statement, held) in enumerate(pairs):
        if number in begins:
            action = begins[number]
            forward = action is not None and action.work is Work.FORWARD
            phase = Phase.FORWARD if forward else Phase.BACKWARD
        node = statement.node
        module, name = (info(node).module, node.name) if node is not None else ("", "")
        yield Moment(phase, module, name, {k: held[k] for k in Kind} | {Kind.OPTIMIZER: state})
