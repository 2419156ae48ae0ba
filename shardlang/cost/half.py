"""The statements that the eager executor writes for one half of a step, and what each one frees.

A collective that moves nothing is no statement: its values are those that it is given. A variable
is freed behind the last statement that reads it, and at once where none does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import fx

from shardlang.cost.effects import Value
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


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: its node, and the most bytes that it holds at once beside its operands.

    One without a node stands for what happens between the halves, and behind the second.
    """

    node: fx.Node | None
    inside: int


@dataclass(frozen=True, slots=True)
class Line:
    """A statement and the storages that it makes, holds and releases.

    Storages are numbered: those of the given values first, then new ones in order.

    Attributes:
        sizes: bytes of each new storage.
        releases: by the variables that nothing reads any more; one of several may come often.
    """

    statement: Statement
    sizes: tuple[int, ...]
    holds: tuple[int, ...]
    releases: tuple[int, ...]


@dataclass(slots=True)
class HalfEffect:
    """What all statements of a half do.

    Attributes:
        made: what each of them gives, with storages numbered as above.
    """

    lines: list[Line] = field(default_factory=list)
    made: dict[fx.Node, Value] = field(default_factory=dict)


Given = tuple[tuple[Value, ...], frozenset[fx.Node]]
"""The values that a half reads, storages numbered, and the variables that are freed."""


@dataclass(slots=True)
class Half:
    """One half of a step on one device.

    Attributes:
        statements: the nodes that are run, in order.
        same: a value that is another one's variable, by node.
        freed: by statement, the variables that nothing reads any more.
        read: the variables that it is given and reads.
        effects: what it does to memory, by what was asked of it before (`half_effect`).
    """

    statements: list[fx.Node] = field(default_factory=list)
    same: dict[fx.Node, fx.Node] = field(default_factory=dict)
    freed: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    read: list[fx.Node] = field(default_factory=list)
    effects: dict[Given, HalfEffect] = field(default_factory=dict, repr=False)

    def variable(self, node: fx.Node) -> fx.Node:
        """The node whose variable holds a value."""
        return self.same.get(node, node)

    @property
    def variables(self) -> list[fx.Node]:
        """All variables that it reads or makes."""
        return self.read + self.statements


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
    made = set(half.statements)
    half.read += [variable for variable in last if variable not in made]
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
