"""localize: from global to local arguments, and from the graph to the program every device runs.

Sizes and offsets become functions of the device coordinate, so one text serves all devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from torch import fx

from shardlang.ir.compat import OpOverload
from shardlang.ir.graph import (
    ShardGraph,
    constrain,
    held_values,
    is_item,
    is_reshard,
    sharding_of,
)
from shardlang.ir.layout import Layout
from shardlang.ir.node import info, layout_of, set_info
from shardlang.ir.program import LocalProgram
from shardlang.ir.rewriter import Rewriter
from shardlang.passes.invariants.gradients import types_hold
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.invariants.local import local_shapes_fit
from shardlang.passes.invariants.orders import orders_kept
from shardlang.passes.invariants.reshards import operands_in_place
from shardlang.passes.invariants.structure import constraints_met, rules_fit
from shardlang.passes.invariants.sums import partials_pass
from shardlang.rules.call import Call
from shardlang.rules.local_order import drawn_in_order
from shardlang.rules.registry import find
from shardlang.rules.streams import key_node


@dataclass(frozen=True, slots=True)
class Localize:
    """Rewrite every op's arguments to what a device's shard needs."""

    name: str = "localize"
    establishes: ClassVar[tuple[Invariant, ...]] = (constraints_met, local_shapes_fit)
    retires: ClassVar[tuple[Invariant, ...]] = (
        rules_fit,
        partials_pass,
        orders_kept,
        operands_in_place,
        types_hold,
    )

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Localize all ops and drop the constraints, which are met by now."""
        streams = ProgramStreams(graph.graph) if graph.fast_random else None
        for node in list(graph.graph.nodes):
            if node.op != "call_function" or is_item(node) or is_reshard(node):
                continue
            if node.target is constrain:
                drop(node)
            else:
                localize_node(node, streams)
        return graph


class ProgramStreams:
    """The streams of a program: its key, and the draws numbered in program order."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph, self._draws = graph, 0

    @cached_property
    def _key(self) -> fx.Node:
        """The key is drawn before anything else."""
        return key_node(self._graph)

    def take(self) -> tuple[fx.Node, int]:
        """The key, and the number of the next draw."""
        self._draws += 1
        return self._key, self._draws - 1


def drop(node: fx.Node) -> None:
    """Remove an identity."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    Rewriter(node.graph).replace(node, source)


def localize_node(node: fx.Node, streams: ProgramStreams | None = None) -> None:
    """Put local arguments into one op; a random one draws from `streams` where they are given."""
    sharding = sharding_of(node)
    set_info(node, replace(info(node), random=sharding.rule.random))
    declared, edit = find(node.target), Rewriter(node.graph)
    if declared is None:
        return
    if not sharding.axes() and not declared.always:
        _draw_in_order(node)
    elif streams is not None and declared.fast is not None and sharding.result().sharded:
        edit.become(node, *declared.fast(Call(node), sharding, streams))
    elif declared.localize is not None:
        edit.become(node, *declared.localize(Call(node), sharding))
        _draw_in_order(node)


def _draw_in_order(node: fx.Node) -> None:
    """Let an op that draws for a whole operand see it in memory as it lies in the model."""
    if not info(node).random or not isinstance(node.target, OpOverload):
        return
    operand, rest = node.args[:1], node.args[1:]
    order = info(node).draws_in
    if order is not None and isinstance(operand[0], fx.Node):
        node.args = (*operand, node.target, order, *rest)
        node.target = drawn_in_order


def to_program(graph: ShardGraph) -> LocalProgram:
    """The program, once all passes have run."""
    held = held_values(graph.graph)
    leaves = tuple(
        replace(leaf, layout=layout_of(node), gathered=_gathered(node, held))
        for node, leaf in graph.placeholders()
    )
    results = tuple(
        replace(result, layout=layout_of(node))
        for result, node in zip(graph.results, graph.result_nodes, strict=True)
        if node is not None
    )
    return LocalProgram(
        graph.mesh, graph.graph, leaves, results, graph.loss, graph.data_axes, graph.info,
        graph.step,
    )  # fmt: skip


def _gathered(node: fx.Node, held: Mapping[fx.Node, fx.Node]) -> Layout | None:
    """The layout in which the value of a leaf is held, where that is not the one of its state."""
    layout = None
    while node in held:
        node = held[node]
        layout = layout_of(node).unlabelled()
    return layout
