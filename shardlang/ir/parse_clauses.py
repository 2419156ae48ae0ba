"""What a graph's text says of a node beside its call and its type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from lark import Token, v_args

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf
from shardlang.ir.mesh import Axis
from shardlang.ir.node import NodeInfo
from shardlang.ir.origin import Origin
from shardlang.ir.parse_calls import CallReader
from shardlang.ir.parse_types import Axes, GraphTextError, Wanted
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


Clause = Callable[[Said], Said]
LeafClause = Callable[[Leaf], Leaf]


@v_args(inline=True)
class ClauseReader(CallReader):
    """Reads clauses, as changes of a `Said`, and words of leaves, as changes of a `Leaf`."""

    def notation(self, number: int) -> Clause:
        return lambda said: replace(said, notation=number)

    def factored(self, name: Token, dim: DimLayout) -> tuple[str, DimLayout]:
        return str(name), dim

    def factors(self, *pairs: tuple[str, DimLayout]) -> Clause:
        return lambda said: replace(said, factors=dict(pairs))

    def passed(self, name: Token, which: tuple[int, ...] | None) -> tuple[Axis, frozenset[int]]:
        return self.find_axis(name), frozenset(which or ())

    def passes(self, *pairs: tuple[Axis, frozenset[int]] | Token) -> Clause:
        given = {pair[0]: pair[1] for pair in pairs if isinstance(pair, tuple)}
        return lambda said: replace(said, linear=given)

    def between(self, start: Layout, end: Layout) -> Clause:
        return lambda said: replace(said, between=(start, end))

    def states(self, wanted: Wanted | None, place: str | None) -> Clause:
        found = replace(wanted or Wanted(None), place=place or "")
        return lambda said: replace(said, stated=found)

    def constant(self, value: bool | int | float | complex) -> Clause:
        return lambda said: replace(said, record=replace(said.record, constant=value))

    def draws(self, order: tuple[int, ...]) -> Clause:
        return lambda said: replace(said, record=replace(said.record, draws_in=order))

    def strides(self, *strides: tuple[int, ...]) -> Clause:
        return lambda said: replace(said, strides=strides)

    def within(self, start: Layout, widest: Layout, end: Layout) -> Clause:
        gather = FullGather(start, widest, end)
        return lambda said: replace(said, record=replace(said.record, full_gather=gather))

    def flag(self, word: Token) -> Clause:
        return lambda said: _with_flag(said, str(word))

    def because(self, name: Token, reason: str, source: str) -> Clause:
        try:
            origin = {self.find_axis(name): Origin.read(reason, source)}
        except ValueError:
            raise GraphTextError(f"`{reason}` is no reason", name.line) from None
        return lambda said: replace(said, origins={**said.origins, **origin})

    def closed(self, name: Token) -> Clause:
        axis = self.find_axis(name)
        return lambda said: replace(said, closed=said.closed | {axis})

    def origin(self, word: Token, text: str) -> Clause:
        return lambda said: replace(said, record=_with_origin(said.record, str(word), text))

    def trainable(self) -> LeafClause:
        return lambda leaf: replace(leaf, trainable=True)

    def nonpersistent(self) -> LeafClause:
        return lambda leaf: replace(leaf, persistent=False)

    def also(self, *names: str) -> LeafClause:
        return lambda leaf: replace(leaf, aliases=names)

    def store(self, axes: Axes) -> LeafClause:
        return lambda leaf: replace(leaf, store=axes)

    def kept(self) -> LeafClause:
        return lambda leaf: replace(leaf, regather=True)


def _with_flag(said: Said, word: str) -> Said:
    record = said.record
    if word == "no_grad":
        return replace(said, record=replace(record, no_grad=True))
    if word == "regather":
        return replace(said, record=replace(record, regather=True))
    if word == "random":
        return replace(said, record=replace(record, random=True))
    return replace(said, flags=said.flags | {word})


def _with_origin(record: NodeInfo, word: str, text: str) -> NodeInfo:
    if word == "for":
        return replace(record, reader=text)
    return replace(record, module=text) if word == "in" else replace(record, source=text)
