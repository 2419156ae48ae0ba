"""The memory of a step on the fullest device: what is alive when, to the byte."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator

from shardlang.cost.composition import Kind, kinds_in, left_in, over_time
from shardlang.cost.live import fullest
from shardlang.cost.memory import leaf_bytes
from shardlang.cost.replay import Replay
from shardlang.cost.update import UpdateCost
from shardlang.ir.leaf import LeafKind
from shardlang.ir.mesh import Coord
from shardlang.ir.node import info
from shardlang.ir.optimizers import ASSUMED, UpdateRule
from shardlang.ir.precision import OWN_TYPES, Precision
from shardlang.ir.program import LocalProgram, differentiable, nodes_of_results
from shardlang.ir.step import StepProgram
from shardlang.ir.values import sources
from shardlang.passes.step.differentiate import differentiate
from shardlang.passes.step.update_cost import update_cost
from shardlang.passes.step.write_step import write_step
from shardlang.plan.moments import Memory, Moment, Phase
from shardlang.plan.update_moments import update_moments


def memory_of(
    program: LocalProgram,
    step: StepProgram,
    whole: StepProgram | None,
    rule: UpdateRule = ASSUMED,
    precision: Precision = OWN_TYPES,
) -> Memory:
    """The memory of one step, from the loss or every output, on the device that needs the most.

    Args:
        step: what a loop runs.
        whole: the step whose forward it runs, if that saves more.
        rule: the optimizer.
        precision: the types that are stated.
    """
    updated = [leaf for leaf in program.leaves if leaf.name in step.gradients]
    update = update_cost(program, updated, rule, precision)
    replay = fullest(step, whole, update)
    given = sum(replay.storages[number].bytes for number in replay.gradients)
    kinds = {leaf.kind for leaf in program.leaves} - {LeafKind.PARAM, LeafKind.INPUT}
    return Memory(
        params_bytes=_at_rest(program, {LeafKind.PARAM}, replay.coord),
        buffers_bytes=_at_rest(program, kinds, replay.coord),
        gradients_bytes=given,
        optimizer_bytes=update.state_bytes(replay.coord),
        optimizer_name=rule.title,
        peak_bytes=update.peak(replay, replay.coord),
        measure=functools.cache(lambda: tuple(_moments(replay, update))),
    )


def step_to_measure(program: LocalProgram, train: bool) -> tuple[StepProgram, StepProgram | None]:
    """The step that a loop runs, and the one whose forward it runs, if that saves more."""
    trained = [leaf.name for leaf in program.leaves if leaf.trainable and train]
    ends = differentiable(program)
    if not trained or not ends:
        return differentiate(program, (), (), ()), None
    step = write_step(program, trained, [program.loss] if program.loss in ends else ends)
    if program.loss not in ends or _lead_to_loss(program, ends):
        return step, None
    return step, write_step(program, trained, ends)


def _lead_to_loss(program: LocalProgram, ends: Collection[str]) -> bool:
    """Whether the loss is computed from all other results at which a gradient may start.

    A backward from one of these reads no more than one from the loss.
    """
    names = [result.name for result in program.results]
    nodes = dict(zip(names, nodes_of_results(program), strict=True))
    read = sources(program.graph, [nodes[program.loss or ""]], lambda node: True)
    return all(nodes[end] in read for end in ends)


def _at_rest(program: LocalProgram, kinds: Collection[LeafKind], coord: Coord) -> int:
    return leaf_bytes((leaf for leaf in program.leaves if leaf.kind in kinds), coord)


def _moments(replay: Replay, update: UpdateCost) -> Iterator[Moment]:
    """The moments of a step, beside an optimizer's states."""
    state = update.state_bytes(replay.coord)
    kinds = kinds_in(replay)
    pairs = zip(replay.statements, over_time(replay, kinds), strict=True)
    for number, (statement, held) in enumerate(pairs):
        phase = Phase.FORWARD if number <= replay.middle else Phase.BACKWARD
        node = statement.node
        module, name = (info(node).module, node.name) if node is not None else ("", "")
        bytes_of = {kind: held[kind] for kind in Kind} | {Kind.OPTIMIZER: state}
        yield Moment(phase, module, name, bytes_of)
    yield from update_moments(update, replay, replay.coord, left_in(replay, kinds))
