"""What a graph's text says of a node beside its call and its type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from lark import Token, v_args
from lark.tree import Meta
from torch.fx.node import Argument

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, Stored
from shardlang.ir.mesh import Axis
from shardlang.ir.node import NodeInfo
from shardlang.ir.origin import Origin
from shardlang.ir.parse_calls import CallReader
from shardlang.ir.parse_error import GraphTextError, Place
from shardlang.ir.parse_types import Axes, Wanted
from shardlang.ir.records import FullGather

Pair = tuple[Layout, Layout]


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of one node.

    Attributes:
        record: what is said of the record as it stands in it.
        notation: which of the op's rules splits it.
        linear: the partial sums that pass; None for those implied.
        between: where reshards begin and end; those not said are implied.
        strides: of each result; empty where all are contiguous.
        flags: `labelled`, `unlabelled`, `gradient`, `no_gradient`.
        places: where each clause stands, by its word.
    """

    record: NodeInfo = field(default_factory=NodeInfo)
    notation: int = 0
    factors: dict[str, DimLayout] = field(default_factory=dict)
    linear: dict[Axis, frozenset[int]] | None = None
    between: Pair | None = None
    stated: Wanted | None = None
    strides: tuple[tuple[int, ...], ...] = ()
    flags: frozenset[str] = frozenset()
    origins: dict[Axis, Origin] = field(default_factory=dict)
    closed: frozenset[Axis] = frozenset()
    places: dict[str, Place] = field(default_factory=dict)


Told = TypeVar("Told", Said, Leaf)


@dataclass(frozen=True, slots=True)
class Clause(Generic[Told]):
    """A clause: its word, where it stands, and what it adds to what is said."""

    word: str
    place: Place
    add: Callable[[Told], Told]


def place_of(meta: Meta) -> Place:
    """Where a rule of the grammar has been found."""
    column = getattr(meta, "column", 1)
    return Place(column, getattr(meta, "end_column", column + 1) - column)


def once(clauses: Sequence[Clause[Told]]) -> dict[str, Place]:
    """Where each clause stands.

    Raises:
        GraphTextError: the same is said twice.
    """
    found: dict[str, Place] = {}
    for clause in clauses:
        if clause.word in found:
            raise GraphTextError(f"`{clause.word}` is said twice", "say it once", clause.place)
        found[clause.word] = clause.place
    return found


@v_args(inline=True, meta=True)
class ClauseReader(CallReader):
    """Reads clauses of nodes and of leaves."""

    def notation(self, meta: Meta, number: int) -> Clause[Said]:
        return Clause("notation", place_of(meta), lambda said: replace(said, notation=number))

    def factored(self, meta: Meta, name: Token, dim: DimLayout) -> tuple[str, DimLayout]:
        return str(name), dim

    def factors(self, meta: Meta, *pairs: tuple[str, DimLayout]) -> Clause[Said]:
        if len(dict(pairs)) < len(pairs):
            raise GraphTextError("a factor is laid out twice", "name each once", place_of(meta))
        return Clause("split", place_of(meta), lambda said: replace(said, factors=dict(pairs)))

    def passed(
        self, meta: Meta, name: Token, which: tuple[int, ...] | None
    ) -> tuple[Axis, frozenset[int]]:
        return self.find_axis(name), frozenset(which or ())

    def passes(self, meta: Meta, *pairs: tuple[Axis, frozenset[int]] | Token) -> Clause[Said]:
        axes = [pair for pair in pairs if isinstance(pair, tuple)]
        if len(dict(axes)) < len(axes):
            raise GraphTextError("an axis passes twice", "name each once", place_of(meta))
        return Clause("passes", place_of(meta), lambda said: replace(said, linear=dict(axes)))

    def between(self, meta: Meta, start: Layout, end: Layout) -> Clause[Said]:
        return Clause("from", place_of(meta), lambda said: replace(said, between=(start, end)))

    def states(self, meta: Meta, wanted: Wanted | None, place: str | None) -> Clause[Said]:
        found = replace(wanted or Wanted(None), place=place or "")
        return Clause("stated", place_of(meta), lambda said: replace(said, stated=found))

    def constant(self, meta: Meta, value: Argument) -> Clause[Said]:
        if not isinstance(value, (bool, int, float, complex)):
            raise GraphTextError("a constant is a number", "write one", place_of(meta))
        return _of_record("constant", meta, lambda record: replace(record, constant=value))

    def draws(self, meta: Meta, order: tuple[int, ...]) -> Clause[Said]:
        return _of_record("draws", meta, lambda record: replace(record, draws_in=order))

    def strides(self, meta: Meta, *strides: tuple[int, ...]) -> Clause[Said]:
        return Clause("strides", place_of(meta), lambda said: replace(said, strides=strides))

    def within(self, meta: Meta, start: Layout, widest: Layout, end: Layout) -> Clause[Said]:
        gather = FullGather(start, widest, end)
        return _of_record("within", meta, lambda record: replace(record, full_gather=gather))

    def flag(self, meta: Meta, word: Token) -> Clause[Said]:
        add = RECORDED.get(word)
        if add is not None:
            return _of_record(str(word), meta, add)
        flags = frozenset({str(word)})
        return Clause(
            str(word), place_of(meta), lambda said: replace(said, flags=said.flags | flags)
        )

    def because(self, meta: Meta, name: Token, reason: str, source: str) -> Clause[Said]:
        try:
            origin = {self.find_axis(name): Origin.read(reason, source)}
        except ValueError:
            remedy = "write a reason as `--long` prints it"
            raise GraphTextError(f"`{reason}` is not a reason", remedy, place_of(meta)) from None
        return Clause(
            f"because {name}",
            place_of(meta),
            lambda said: replace(said, origins={**said.origins, **origin}),
        )

    def closed(self, meta: Meta, name: Token) -> Clause[Said]:
        axis = self.find_axis(name)
        return Clause(
            f"closed {name}",
            place_of(meta),
            lambda said: replace(said, closed=said.closed | {axis}),
        )

    def origin(self, meta: Meta, word: Token, text: str) -> Clause[Said]:
        if word == "for":
            return _of_record("for", meta, lambda record: replace(record, reader=text))
        if word == "in":
            return _of_record("in", meta, lambda record: replace(record, module=text))
        return _of_record("line", meta, lambda record: replace(record, source=text))

    def trainable(self, meta: Meta) -> Clause[Leaf]:
        return Clause("trainable", place_of(meta), lambda leaf: replace(leaf, trainable=True))

    def nonpersistent(self, meta: Meta) -> Clause[Leaf]:
        return Clause("nonpersistent", place_of(meta), lambda leaf: replace(leaf, persistent=False))

    def also(self, meta: Meta, *names: str) -> Clause[Leaf]:
        return Clause("also", place_of(meta), lambda leaf: replace(leaf, aliases=names))

    def store(self, meta: Meta, axes: Axes) -> Clause[Leaf]:
        return Clause("store", place_of(meta), lambda leaf: replace(leaf, store=axes))

    def apart(self, meta: Meta, what: str) -> Clause[Leaf]:
        return Clause("apart", place_of(meta), lambda leaf: replace(leaf, splits=Stored(what)))

    def kept(self, meta: Meta, word: Token) -> Clause[Leaf]:
        return Clause("regather", place_of(meta), lambda leaf: replace(leaf, regather=True))


def _of_record(word: str, meta: Meta, add: Callable[[NodeInfo], NodeInfo]) -> Clause[Said]:
    return Clause(word, place_of(meta), lambda said: replace(said, record=add(said.record)))


RECORDED: dict[str, Callable[[NodeInfo], NodeInfo]] = {
    "no_grad": lambda record: replace(record, no_grad=True),
    "regather": lambda record: replace(record, regather=True),
    "held": lambda record: replace(record, held=True),
    "random": lambda record: replace(record, random=True),
}
"""Flags that stand in the record under their own names."""
