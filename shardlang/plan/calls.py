"""The collective calls of a plan, read off the program that every device runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from shardlang.cost.ring import ring_bytes, sent_bytes
from shardlang.ir.collective import Kind
from shardlang.ir.graph import Pair, regathered, reshard_nodes
from shardlang.ir.mesh import joined
from shardlang.ir.node import Moves, info, tensor_of
from shardlang.ir.optimizers import UpdateRule
from shardlang.ir.program import LocalProgram
from shardlang.ir.reduced import Reduced
from shardlang.ir.step import StepProgram, collectives_of, is_collective
from shardlang.passes.step.write_update import write_update
from shardlang.plan.bounds import Bounds
from shardlang.plan.flights import flights_of
from shardlang.plan.moments import Phase
from shardlang.plan.names import Names, module_of
from shardlang.plan.reasons import Reasons
from shardlang.plan.stage_types import PipelinePlan
from shardlang.plan.types import CollectiveRow

Part = tuple[list[CollectiveRow], int]
"""Calls in the order in which a device makes them, and how often it makes them all in turn."""


def step_parts(program: LocalProgram, names: Names, step: StepProgram) -> list[Part]:
    """The calls of one forward and backward."""
    return [(list(Rows(program, names).of(step.graph.nodes)), 1)]


def update_parts(
    program: LocalProgram, names: Names, rule: UpdateRule, pipeline: PipelinePlan | None = None
) -> list[Part]:
    """The calls of the update: the norm of all gradients, and gathers of updated parameters.

    A rank of a pipeline gathers those of its stages alone.
    """
    trained = [leaf.name for leaf in program.leaves if leaf.trainable]
    rows, norm = Rows(program, names), list(norm_of_gradients(program, rule))

    def gathers(of: list[str]) -> Iterator[CollectiveRow]:
        yield from rows.of(write_update(program, of).graph.nodes, Phase.UPDATE)

    if pipeline is None:
        return [([*norm, *gathers(trained)], 1)]
    parts = [(norm, 1)]
    for held in pipeline.by_rank(trained):
        made = [replace(row, stage=pipeline.first_of(row.tensors)) for row in gathers(held)]
        parts.append((made, 1))
    return parts


def norm_of_gradients(program: LocalProgram, rule: UpdateRule) -> Iterator[CollectiveRow]:
    """The norm of all gradients: one all-reduce of one float64 number over the whole mesh."""
    why = _asks_for_norm(program, rule)
    axes = tuple(axis.name for axis in program.mesh.whole.axes if axis.size > 1)
    if not why or not axes or not any(leaf.trainable for leaf in program.leaves):
        return
    sent = ring_bytes(Kind.ALL_REDUCE, torch.float64.itemsize, program.mesh.devices)
    yield CollectiveRow(
        op="all_reduce",
        axes=axes,
        phase=Phase.UPDATE,
        module="",
        tensors=("squared norm of the gradients",),
        count=1,
        bytes=sent,
        bound=sent,
        reason=why,
    )


def _asks_for_norm(program: LocalProgram, rule: UpdateRule) -> str:
    """Why a step takes the norm; empty if it does not."""
    if rule.clip is not None:
        return "clipping needs the norm of all gradients together"
    if program.step.precision.loss_scale is not None:
        return "all devices step, or none: their gradients are finite together"
    if program.loss:
        return "the norm of all gradients: if it is not finite, no parameter is updated"
    return ""


@dataclass(frozen=True, slots=True)
class Explained:
    """What is said of a call.

    Attributes:
        node: the reshard of which it is a direction.
        module: the module that needs it.
        tensors: the names of what it moves.
        reason: why it is made.
    """

    node: fx.Node
    module: str
    tensors: tuple[str, ...]
    reason: str


class Rows:
    """The calls of a program's step, explained by the reshards of which they are directions."""

    def __init__(self, program: LocalProgram, names: Names) -> None:
        nodes = list(reshard_nodes(program.graph))
        self.nodes: Mapping[str, fx.Node] = {node.name: node for node in nodes}
        self.names, self.bounds = names, Bounds(nodes, Reduced(program))
        self.reasons = Reasons(program, names)

    def of(self, nodes: Iterable[fx.Node], phase: Phase | None = None) -> Iterator[CollectiveRow]:
        """One row for every call, in order; of a step a node says which half it is in."""
        nodes = list(nodes)
        flights = flights_of(nodes)
        for node in nodes:
            if is_collective(node) and any(c.sends for _, c in collectives_of(node)):
                half = Phase.BACKWARD if info(node).backward else Phase.FORWARD
                flight = flights[node].ends if node in flights else None
                yield replace(self._row(node, phase or half), flight=flight)

    def explained(self, node: fx.Node, phase: Phase) -> Explained | None:
        """What is said of a call; None for one that no reshard of the program stands for."""
        moves = info(node).moves
        there = self.nodes.get(moves.node) if moves is not None else None
        if moves is None or there is None:
            return None
        pairs = [self.bounds.pairs[there, place] for place in moves.places]
        return Explained(
            there,
            module_of(there, backward=moves.adjoint),
            tuple(self.names(value) for value, _ in pairs),
            self._reason(moves, phase, pairs),
        )

    def _row(self, node: fx.Node, phase: Phase) -> CollectiveRow:
        moves, dtype, said = info(node).moves, info(node).dtype, self.explained(node, phase)
        assert moves and dtype and said, f"nothing is known of what {node} moves"
        made = [collective for _, collective in collectives_of(node)]
        first, steps = made[0], [(said.node, place) for place in moves.places]
        bounds = self.bounds.backward if moves.adjoint else self.bounds.forward
        bound = sum(bounds[step] for step in steps)
        if phase is Phase.UPDATE:
            bound = (
                bound * dtype.itemsize // tensor_of(self.bounds.pairs[steps[0]][0]).dtype.itemsize
            )
        return CollectiveRow(
            op=first.op,
            axes=tuple(axis.name for axis in joined(first.axes)),
            phase=phase,
            module=said.module,
            tensors=said.tensors,
            count=1,
            bytes=sum(sent_bytes(one, dtype.itemsize) for one in made),
            bound=bound,
            reason=said.reason,
            node=said.node.name,
            full_gather=first.kind is Kind.ALL_GATHER and info(said.node).full_gather is not None,
        )

    def _reason(self, moves: Moves, phase: Phase, pairs: list[Pair]) -> str:
        node, many = self.nodes[moves.node], len(pairs) > 1
        if phase is Phase.UPDATE:
            return self.reasons.held(pairs)
        if moves.adjoint:
            return self.reasons.bucket(pairs) if many else self.reasons.backward(node, *pairs[0])
        if phase is Phase.FORWARD:
            return self.reasons.gathers(pairs) if many else self.reasons.forward(node, *pairs[0])
        if regathered(node).keys() >= set(moves.places):
            return "gathered again for the backward, as stored"
        return "made again, as `recompute` says"
