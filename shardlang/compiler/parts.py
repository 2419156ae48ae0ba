"""Axes in parts: which are used so, decided by the bytes that a step sends.

Where an axis stops at a dim with fewer pieces than devices, the program is made once more with the
axis in parts that would go on. Of the programs, the one that sends the fewest bytes in a step is
taken, and of equal ones the one whose leaves hold the fewest; else the axis stays whole. A
parameter of which several shards share a unit, such as key heads beside more query heads, is tried
in both ways: as it is stated, and over the part of its axes that has a unit for every shard.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from shardlang.capture import Captured
from shardlang.compiler.build import Statements, build_graph
from shardlang.compiler.whole_buffers import check_updates
from shardlang.cost.step import leaf_bytes, step_bytes
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.factor import Factor
from shardlang.ir.graph import ShardError, ShardGraph
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.records import Stated
from shardlang.passes.pipeline import PIPELINE, PROPAGATE, Pass, run_passes
from shardlang.passes.propagate.parts_wanted import Cuts, Few, few_units, parts_wanted
from shardlang.passes.rewrite.localize import to_program

STOPPED = ("propagate", PROPAGATE[-1].name)
"""The passes behind which it is looked where an axis stops: chains may be weighed so that it goes
another way instead, which may move more than a part of it would."""

ENOUGH = 0.99
"""An axis is used in parts if that sends less than this share, or sends no more and holds less."""


@dataclass(slots=True)
class Decided:
    """Statements on a mesh whose axes are in the parts in which they are used.

    Attributes:
        graph: the graph after all passes.
        wanted: the parts of axes that would go on where these stop.
        few: parameters of which several shards share a unit.
    """

    statements: Statements
    graph: ShardGraph
    wanted: Cuts = field(default_factory=dict)
    few: Few = field(default_factory=dict)


def in_order(
    captured: Captured,
    statements: Statements,
    train: bool,
    passes: tuple[Pass, ...],
    mesh: Mesh | None,
) -> tuple[Statements, ShardGraph]:
    """The statements on a mesh in parts, and the graph after the passes.

    Raises:
        ShardError: the model cannot be sharded as stated.
    """
    if mesh is not None:
        statements = in_parts(statements, mesh)
    elif passes is PIPELINE:
        done = decided(captured, statements, train)
        return done.statements, done.graph
    elif passes:
        with contextlib.suppress(ShardError):  # a pass that is not among them may refuse
            statements = decided(captured, statements, train).statements
    graph = run_passes(build_graph(captured, statements), passes)
    check_updates(graph)
    return statements, graph


def decided(captured: Captured, statements: Statements, train: bool) -> Decided:
    """The statements with axes in parts where that sends fewer bytes.

    Raises:
        ShardError: the model cannot be sharded as stated.
    """
    whole = _made(captured, statements, train)
    others = _others(captured, whole, train)
    first = next(others, None)
    if first is None:
        return whole
    best, price = whole, _price(whole, train)
    enough = price.sent * ENOUGH, price.held * ENOUGH
    for made in itertools.chain((first,), others):
        new = _price(made, train)
        if new < price and (new.sent < enough[0] or new.held < enough[1]):
            best, price = made, new
    return best


def _others(captured: Captured, whole: Decided, train: bool) -> Iterator[Decided]:
    """The same with axes in parts that go on where the whole ones stop, as stated and narrowed."""
    yield from _narrowed(captured, whole, train)
    for mesh in _meshes(whole.statements.mesh, whole.wanted):
        for made in _tried(captured, in_parts(whole.statements, mesh), train):
            yield made
            yield from _narrowed(captured, made, train)


def _narrowed(captured: Captured, made: Decided, train: bool) -> Iterator[Decided]:
    """The same with units that several shards share whole on each of these."""
    leaves = {**made.statements.leaves, **_narrower(made.statements, made.few)}
    if leaves != made.statements.leaves:
        yield from _tried(captured, replace(made.statements, leaves=leaves), train)


def _tried(captured: Captured, statements: Statements, train: bool) -> Iterator[Decided]:
    """What is made of statements, if no pass refuses them."""
    with contextlib.suppress(ShardError):
        yield _made(captured, statements, train)


def _made(captured: Captured, statements: Statements, train: bool) -> Decided:
    """What the passes make of statements, chains weighed unless that sends more bytes after all.

    Chains are weighed by what their reshards are expected to send; what the program sends is known
    when it stands.

    Raises:
        ShardError: a pass refuses them.
    """
    made = _passed(captured, statements)
    if any(one.chosen < one.flowed for one in made.graph.info.weighed):
        flowed = _passed(captured, replace(statements, weighs=False))
        if _price(flowed, train).sent < _price(made, train).sent:
            return flowed
    return made


def _passed(captured: Captured, statements: Statements) -> Decided:
    """What the passes make of statements.

    Raises:
        ShardError: a pass refuses them.
    """
    made = Decided(statements, build_graph(captured, statements))

    def seen(name: str, graph: ShardGraph) -> None:
        if name in STOPPED:
            for of, ends in parts_wanted(graph).items():
                made.wanted.setdefault(of, set()).update(ends)
        if name == PROPAGATE[-1].name:
            made.few = few_units(graph) if any(axis.part for axis in graph.mesh.axes) else {}

    made.graph = run_passes(made.graph, seen=seen)
    check_updates(made.graph)
    return made


class Price(NamedTuple):
    """Bytes sent in a step, bytes of the leaves, and how many axes and parts of axes there are."""

    sent: int
    held: int
    axes: int


def _price(made: Decided, train: bool) -> Price:
    program = to_program(made.graph)
    axes = len(made.statements.mesh.axes)
    return Price(step_bytes(program, train), leaf_bytes(program), axes)


def _meshes(mesh: Mesh, cuts: Cuts) -> Iterator[Mesh]:
    """The mesh in all parts that fit into one another, and in each two alone."""
    every = {of: _chain(ends) for of, ends in cuts.items()}
    singles = [{of: [end]} for of, ends in cuts.items() for end in sorted(ends)]
    for one in dict.fromkeys(mesh.in_parts(_with_own(mesh, cut)) for cut in (every, *singles)):
        if one != mesh:
            yield one


def _chain(ends: Iterable[int]) -> list[int]:
    """Ends of parts, each a multiple of the one before it."""
    chain: list[int] = []
    for end in sorted(ends):
        if not chain or end % chain[-1] == 0:
            chain.append(end)
    return chain


def _with_own(mesh: Mesh, cuts: Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int]]:
    """The ends of parts beside those that the mesh has."""
    found = {of: list(ends) for of, ends in cuts.items()}
    for axis in mesh.axes:
        of, after, end = axis.stretch
        found.setdefault(of, []).extend((after, end))
    return found


def in_parts(statements: Statements, mesh: Mesh) -> Statements:
    """The same statements on the same mesh in parts."""

    def axes(whole: Iterable[Axis]) -> tuple[Axis, ...]:
        return mesh.named(axis.name for axis in whole)

    def dim(whole: DimLayout) -> DimLayout:
        blocks = (tuple(Factor(f.size, axes(f.axes)) for f in block) for block in whole.blocks)
        return DimLayout(tuple(blocks), whole.order)

    def stated(whole: Stated) -> Stated:
        dims, partial = map(dim, whole.layout.dims), frozenset(axes(whole.layout.partial))
        return replace(whole, layout=Layout(tuple(dims), partial))

    return replace(
        statements,
        mesh=mesh,
        data_axes=frozenset(axes(statements.data_axes)),
        leaves={name: stated(one) for name, one in statements.leaves.items()},
        values={key: stated(one) for key, one in statements.values.items()},
        outputs={name: stated(one) for name, one in statements.outputs.items()},
        stores={n: replace(one, axes=axes(one.axes)) for n, one in statements.stores.items()},
    )


def _narrower(statements: Statements, few: Few) -> dict[str, Stated]:
    """The layouts of parameters with few units, split over parts of their axes alone."""
    found: dict[str, Stated] = {}
    for name, counts in few.items():
        stated = statements.leaves[name]
        layout = stated.layout
        for dim, count in counts.items():
            layout = layout.replaced(dim, _as_far_as(layout.dims[dim], count))
        found[name] = replace(stated, layout=layout)
    return found


def _as_far_as(dim: DimLayout, count: int) -> DimLayout:
    """A dim split over the most of its axes, from the major one on, that has a unit for a shard."""
    axes = dim.axes
    heads = [axes[:end] for end in range(len(axes), 0, -1)]
    even = (h for h in heads if count % math.prod(axis.size for axis in h) == 0)
    some = (h for h in heads if count >= math.prod(axis.size for axis in h))
    head = next(even, None) or next(some, axes)
    return DimLayout.shard(dim.size, head)
