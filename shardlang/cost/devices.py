"""Which devices of a mesh differ in what they hold: one of each is enough to find the fullest."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

from torch.fx.node import Argument, map_aggregate

from shardlang.ir.collective import Collective, Kind
from shardlang.ir.device_values import (
    ByPart,
    Combined,
    ListByPart,
    LocalIndices,
    LocalShard,
    LocalSize,
)
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Coord
from shardlang.ir.step import StepProgram, collectives_of, is_collective

Trait = Callable[[Coord], Hashable]
"""Something of a device on which the memory that it needs depends."""

_BY_PLACE = (Kind.PERMUTE, Kind.EXCHANGE, Kind.HALO, Kind.FOLD)
"""Collectives in which every device may send another share."""


def unlike_devices(program: StepProgram) -> list[Coord]:
    """The first device of each kind, where all devices of a kind hold the same number of bytes."""
    traits = traits_of(program)
    found: dict[tuple[Hashable, ...], Coord] = {}
    for coord in program.mesh.coords():
        found.setdefault(tuple(trait(coord) for trait in traits), coord)
    return list(found.values())


def traits_of(program: StepProgram) -> list[Trait]:
    """All on which the memory that a step takes depends."""
    layouts = {layout for leaf in program.leaves for layout in (leaf.layout, leaf.at_rest)}
    traits = [_shape(layout) for layout in layouts if not _is_even(layout)]
    traits += [trait for one in _collectives(program) for trait in _of_collective(one)]
    return traits + [trait for one in _numbers(program) for trait in _of_number(one)]


def _collectives(program: StepProgram) -> set[Collective]:
    nodes = filter(is_collective, program.graph.nodes)
    return {collective for node in nodes for _, collective in collectives_of(node)}


def _numbers(program: StepProgram) -> dict[object, None]:
    """All arguments of ops that depend on the device."""
    found: dict[object, None] = {}

    def note(value: Argument) -> Argument:
        if isinstance(value, _NUMBERS):
            found[value] = None
        return value

    for node in program.graph.nodes:
        map_aggregate((node.args, node.kwargs), note)
    return found


def _is_even(layout: Layout) -> bool:
    return all(dim.even for dim in layout.dims)


def _shape(layout: Layout) -> Trait:
    return layout.local_shape


def _of_collective(one: Collective) -> Iterator[Trait]:
    names = [axis.name for axis in one.axes]
    if one.kind is Kind.FIRST:
        yield lambda coord: any(coord[name] for name in names)
    if one.kind in _BY_PLACE or not (_is_even(one.src) and _is_even(one.dst)):
        yield lambda coord: tuple(coord[name] for name in names)
    yield from (_shape(layout) for layout in (one.src, one.dst) if not _is_even(layout))


_NUMBERS = (LocalSize, LocalIndices, LocalShard, ByPart, ListByPart, Combined)
"""Arguments that may be sizes; where a shard starts, and which it is, costs no memory."""


def _of_number(one: object) -> Iterator[Trait]:
    if isinstance(one, (LocalSize, ByPart, Combined)):
        yield one.at
    if isinstance(one, (LocalIndices, ListByPart)):
        yield lambda coord: len(one.at(coord))
    if isinstance(one, LocalShard) and not _is_even(one.layout):
        yield _shape(one.layout)
