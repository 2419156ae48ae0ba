"""From a program to its plan: one row per tensor and per collective call."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import fx

from shardlang.cost.reshards import sent_backward, sent_forward
from shardlang.cost.ring import ring_bytes
from shardlang.ir.collection import rarely_collected
from shardlang.ir.collective import Kind
from shardlang.ir.graph import is_held, is_item, items_of, regathered, reshard_nodes, reshards_of
from shardlang.ir.leaf import LeafKind, ResultKind
from shardlang.ir.mesh import joined
from shardlang.ir.node import info
from shardlang.ir.program import LocalProgram, apply_reshards, with_gradient
from shardlang.ir.reduced import Reduced
from shardlang.plan.accumulated import accumulated_rows
from shardlang.plan.bounds import Bounds, Step, steps_of
from shardlang.plan.memory import memory_of
from shardlang.plan.names import Names, module_of
from shardlang.plan.reasons import Reasons
from shardlang.plan.recomputed import recomputed_of
from shardlang.plan.types import CollectiveRow, Phase, Plan, TensorRow, Value
from shardlang.plan.values import module_values

if TYPE_CHECKING:
    from shardlang.compiler.driver import Compiled
    from shardlang.spec.types import OptimizerDecl


def make_plan(
    program: LocalProgram,
    values: Mapping[str, Value] | None = None,
    optimizer: OptimizerDecl | None = None,
    train: bool = True,
    master: torch.dtype | None = None,
) -> Plan:
    """The plan of a program.

    Args:
        values: the modules' own tensors by name (`model.norm.out`).
        optimizer: as the spec states it; AdamW is assumed where it states none.
        train: whether there is a backward at all.
        master: the type of the master weights of narrower parameters.
    """
    found = dict(values or {})
    names = Names.of(program, {value.node: name for name, value in reversed(found.items())})
    flowing, again = with_gradient(program) if train else set(), recomputed_of(program, train)
    collector = Collector(program, names, flowing, again.again if again is not None else {})
    return Plan(
        program.mesh,
        frozenset(axis.name for axis in joined(sorted(program.data_axes))),
        (*_leaves(program), *_values(found), *_results(program)),
        (
            *collector.forward(),
            *collector.backward(),
            *(clipping(program, optimizer) if train else ()),
            *(collector.update() if train else ()),
        ),
        functools.cache(lambda: memory_of(program, optimizer, train, master=master)),
        again,
    )


@rarely_collected()
def plan_of(compiled: Compiled) -> Plan:
    """The plan of a compiled spec.

    Raises:
        CompileError: the batch cannot be cut into microbatches.
    """
    from shardlang.compiler.accumulate import accumulated, accumulated_step

    values = module_values(compiled.captured, compiled.graph)
    optimizer = compiled.spec.optimizer
    master = compiled.program.step.precision.master
    plan = make_plan(compiled.program, values, optimizer, compiled.train, master)
    stated = compiled.spec.accumulate
    if stated is None or stated.count == 1 or not compiled.train or not compiled.program.loss:
        return plan
    step = accumulated_step(accumulated(compiled))
    update = (row for row in plan.collectives if row.phase is Phase.UPDATE)
    memory = functools.cache(lambda: memory_of(compiled.program, optimizer, True, step, master))
    return replace(plan, collectives=(*accumulated_rows(step), *update), measure=memory)


class Collector:
    """Reads the collectives off a program's reshard nodes."""

    def __init__(
        self, program: LocalProgram, names: Names, flowing: set[fx.Node], again: Collection[str]
    ) -> None:
        self.nodes, self.again = list(reshard_nodes(program.graph)), again
        self.names, self.flowing, self.reduced = names, flowing, Reduced(program)
        self.reasons, self.bounds = Reasons(program, names), Bounds(self.nodes, self.reduced)

    def forward(self) -> Iterator[CollectiveRow]:
        """The forward calls, in program order."""
        for node in self.nodes:
            pairs = reshards_of(node)
            if pairs[0][1].forward.sends and not is_held(node):
                reason = (
                    self.reasons.gathers(pairs)
                    if len(pairs) > 1
                    else self.reasons.forward(node, *pairs[0])
                )
                yield self._row(node, steps_of(node), Phase.FORWARD, reason)

    def update(self) -> Iterator[CollectiveRow]:
        """The gathers of parameters whose value is kept gathered."""
        for node in self.nodes:
            held = items_of(node) if is_held(node) else {}
            steps = [(node, i) for i, item in held.items() if item in self.flowing]
            pairs = [self.bounds.pairs[step] for step in steps]
            if pairs and pairs[0][1].forward.sends:
                row = self._row(node, steps, Phase.FORWARD, self.reasons.held(pairs))
                yield replace(row, phase=Phase.UPDATE)

    def backward(self) -> Iterator[CollectiveRow]:
        """The backward calls, in the order in which the backward comes to them."""
        for node in reversed(self.nodes):
            steps, again = self._with_gradient(node), self._regathered(node)
            if again:
                yield self._again(node, again, "gathered again for the backward, as stored")
            if node.name in self.again and reshards_of(node)[0][1].forward.sends:
                yield self._again(node, steps_of(node), "made again, as `recompute` says")
            pairs = [self.bounds.pairs[step] for step in steps]
            if not pairs or not pairs[0][1].adjoint.sends:
                continue
            many = len(pairs) > 1
            reason = self.reasons.bucket(pairs) if many else self.reasons.backward(node, *pairs[0])
            yield self._row(node, steps, Phase.BACKWARD, reason)

    def _again(self, node: fx.Node, steps: list[Step], reason: str) -> CollectiveRow:
        """A call of the forward that the backward makes once more."""
        row = self._row(node, steps, Phase.FORWARD, reason)
        return replace(row, phase=Phase.BACKWARD)

    def _with_gradient(self, node: fx.Node) -> list[Step]:
        """The changes of layout of a reshard node through which a gradient flows."""
        if node not in self.flowing:
            return []
        if node.target is not apply_reshards:
            return steps_of(node)
        alive = {user.args[1] for user in node.users if is_item(user) and user in self.flowing}
        return [step for step in steps_of(node) if step[1] in alive]

    def _regathered(self, node: fx.Node) -> list[Step]:
        """The changes of layout that a backward makes again."""
        return [(node, place) for place in regathered(node)] if self.flowing else []

    def _row(
        self, node: fx.Node, steps: Sequence[Step], phase: Phase, reason: str
    ) -> CollectiveRow:
        pairs = [self.bounds.pairs[step] for step in steps]
        reshard = pairs[0][1]
        is_forward = phase is Phase.FORWARD
        made = reshard.forward if is_forward else reshard.adjoint
        bounds = self.bounds.forward if is_forward else self.bounds.backward
        return CollectiveRow(
            op=made.op,
            axes=tuple(axis.name for axis in joined(made.axes)),
            phase=phase,
            module=module_of(node, backward=not is_forward),
            tensors=tuple(self.names(value) for value, _ in pairs),
            count=1,
            bytes=sent_forward(pairs) if is_forward else sent_backward(pairs, self.reduced),
            bound=sum(bounds[step] for step in steps),
            reason=reason,
            node=node.name,
            full_gather=made.kind is Kind.ALL_GATHER and info(node).full_gather is not None,
        )


def _leaves(program: LocalProgram) -> Iterator[TensorRow]:
    for leaf in program.leaves:
        if leaf.kind in (LeafKind.PARAM, LeafKind.BUFFER, LeafKind.INPUT):
            yield TensorRow(
                leaf.name, leaf.kind, leaf.dtype, leaf.at_rest.unlabelled(), leaf.trainable
            )


def _values(values: Mapping[str, Value]) -> Iterator[TensorRow]:
    for name, value in values.items():
        yield TensorRow(
            name, "value", value.dtype, value.layout.unlabelled(), expected=value.expected
        )  # fmt: skip


def _results(program: LocalProgram) -> Iterator[TensorRow]:
    for result in program.results:
        if result.kind is ResultKind.OUTPUT:
            yield TensorRow(result.name, "output", result.dtype, result.layout.unlabelled())


def clipping(program: LocalProgram, optimizer: OptimizerDecl | None) -> Iterator[CollectiveRow]:
    """The optimizer's own collectives: the norm of all gradients, where it is clipped.

    It is one all-reduce of one float64 number over the whole mesh.
    """
    clipped = optimizer is not None and "clip" in optimizer.kwargs
    scaled = program.step.precision.loss_scale is not None
    axes = tuple(axis.name for axis in program.mesh.whole.axes if axis.size > 1)
    if not (clipped or scaled) or not axes or not any(leaf.trainable for leaf in program.leaves):
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
        reason="clipping needs the norm of all gradients together"
        if clipped
        else "all devices step, or none: their gradients are finite together",
    )
