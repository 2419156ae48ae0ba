"""The dimension graph: the dims of all values, joined by the factors of the ops between them.

A vertex is a dim of a value or a factor of an op. An edge leads from a dim to each factor by which
an op reads it, and from a factor to each dim that the op writes with it. So what a layout of one
dim means for another is found along a path, and what depends on it lies behind it. An edge has a
`Joint` for every place where its two ends meet: the slot of the operand, and which digit of which
packed block the factor is, with its place value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeVar

import networkx as nx
from torch import fx

from shardlang.ir.rule import DimSpec, Rule


class Dim(NamedTuple):
    """A dim of a value: of one of the results of an op, or of a leaf."""

    op: fx.Node
    result: int
    dim: int


class OpFactor(NamedTuple):
    """A factor of an op."""

    op: fx.Node
    name: str


Vertex = Dim | OpFactor
End = TypeVar("End", Dim, OpFactor)


class Part(Enum):
    """What a factor is of a dim: all of it, a packed block, or one digit among several."""

    ALL = "all"
    BLOCK = "block"
    DIGIT = "digit"


@dataclass(frozen=True, slots=True)
class Joint:
    """One place where a dim and a factor meet.

    Attributes:
        slot: the operand of the op that has the dim; None for a result.
        block: which packed block of the dim the factor is in.
        size: how many indices the factor has.
        unit: how many indices of the dim lie between two neighbouring indices of the factor.
        part: what the factor is of the dim; digits of size 1 do not count as digits.
    """

    slot: int | None
    block: int
    size: int
    unit: int
    part: Part


class Use(NamedTuple):
    """A use of an op's result: who reads it, as which operand, and which result it is."""

    reader: fx.Node
    slot: int
    result: int


@dataclass(slots=True)
class DimGraph:
    """The dimension graph of a graph of ops.

    Attributes:
        net: the vertices and their edges; `joints` of an edge are its `Joint`s.
        operands: every op in order, with the values that it reads, slot by slot.
        uses: every op with the uses of its results.
    """

    net: nx.DiGraph = field(default_factory=nx.DiGraph)
    operands: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    uses: dict[fx.Node, list[Use]] = field(default_factory=dict)

    def factors(self, dim: Dim) -> Iterator[tuple[OpFactor, Joint]]:
        """The factors that a dim is joined to: of the op that made it, then of its readers."""
        if dim in self.net:
            yield from _met(self.net.pred[dim].items())
            yield from _met(self.net.succ[dim].items())

    def dims(self, factor: OpFactor) -> Iterator[tuple[Dim, Joint]]:
        """The dims that a factor is joined to: of the operands, then of the results."""
        yield from _met(self.net.pred[factor].items())
        yield from _met(self.net.succ[factor].items())


def _met(edges: Iterable[tuple[End, dict[str, tuple[Joint, ...]]]]) -> Iterator[tuple[End, Joint]]:
    return ((end, joint) for end, data in edges for joint in data["joints"])


class Meeting(NamedTuple):
    """Where a factor of a rule and a dim meet.

    Attributes:
        result: which result has the dim; 0 for an operand.
    """

    name: str
    result: int
    dim: int
    joints: tuple[Joint, ...]


def meetings(rule: Rule) -> list[Meeting]:
    """Every place where a factor and a dim of an operand or a result meet."""
    sizes = dict(rule.sizes)
    found: list[Meeting] = []
    for slot, operand in enumerate(rule.operands):
        for dim, spec in enumerate(operand.dims):
            found += (Meeting(name, 0, dim, (one,)) for name, one in _joints(slot, spec, sizes))
    for index, dims in enumerate(rule.results):
        for dim, spec in enumerate(dims):
            made = _joints(None, spec, sizes)
            found += (Meeting(name, index, dim, (one,)) for name, one in made)
    return found


def _joints(slot: int | None, spec: DimSpec, sizes: dict[str, int]) -> Iterator[tuple[str, Joint]]:
    """The joints of one dim, by the name of the factor."""
    for index, block in enumerate(spec):
        digits = sum(sizes[name] > 1 for name in block) > 1
        unit = math.prod(sizes[name] for name in block)
        for name in block:
            unit //= sizes[name] or 1
            part = Part.DIGIT if digits else Part.ALL if spec == ((name,),) else Part.BLOCK
            yield name, Joint(slot, index, sizes[name], unit, part)
