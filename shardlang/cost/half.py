"""The statements that the eager executor writes for one half of a step, and what each one frees.

A collective that moves nothing is no statement: its values are those that it is given. A variable
is freed behind the last statement that reads it, and at once where none does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import fx

from shardlang.cost.step_calls import StepCalls
from shardlang.ir.node import info
from shardlang.ir.step import (
    StepProgram,
    collectives_of,
    is_bucket,
    is_start,
    is_wait,
    started_by,
)


@dataclass(slots=True)
class Half:
    """One half of a step on one device.

    Attributes:
        statements: the nodes that are run, in order.
        same: a value that is another one's variable, by node.
        freed: by statement, the variables that nothing reads any more.
    """

    statements: list[fx.Node] = field(default_factory=list)
    same: dict[fx.Node, fx.Node] = field(default_factory=dict)
    freed: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)

    def variable(self, node: fx.Node) -> fx.Node:
        """The node whose variable holds a value."""
        return self.same.get(node, node)


def half_of(program: StepProgram, calls: StepCalls, *, backward: bool) -> Half:
    """The forward or the backward of a step."""
    return part_of((n for n in program.graph.nodes if info(n).backward is backward), calls)


def part_of(nodes: Iterable[fx.Node], calls: StepCalls) -> Half:
    """Some nodes of a graph, in order, as a part that is run by itself."""
    half, last = Half(), dict[fx.Node, fx.Node]()
    for node in nodes:
        if node.op != "call_function" or node in half.same:
            continue
        if calls.does_nothing(node):
            half.same.update((made, half.variable(source)) for made, source in _kept(node))
            continue
        half.statements.append(node)
        last[node] = node
        last.update((half.variable(source), node) for source in node.all_input_nodes)
    for variable, node in last.items():
        half.freed.setdefault(node, []).append(variable)
    return half


def _kept(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What a collective gives, with what it is given, where it moves nothing."""
    if is_start(node):
        return
    sent = started_by(node) if is_wait(node) else node
    pairs = collectives_of(sent)
    if not is_bucket(sent):
        yield node, pairs[0][0]
        return
    for item in node.users:
        place = item.args[1]
        assert isinstance(place, int), f"{item} is no item"
        yield item, pairs[place][0]
