"""Which parts of an axis would go on where the whole axis stops.

An axis goes through an op that takes a dim apart into digits only if one of the digits has a shard
for every device. Where it stops for want of that, the part of it that the digit has shards for may
go on. It may too where an op took another notation so as to read the axis at all. Looked for is
only where an axis has stopped, and in ops of which a digit and an axis have a factor in common.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.dims import Dim, Part, meetings
from shardlang.ir.graph import ShardGraph, result_layout, sharding_of
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import LeafKind
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info
from shardlang.ir.rule import Rule
from shardlang.passes.propagate.align_units import Units
from shardlang.passes.propagate.bind_rules import rule_of

Place = tuple[int | None, int, int]
"""Slot of an operand, or None for a result; which result; and the dim."""

Cuts = dict[str, set[int]]
"""By the name of an axis, the numbers of shards at which a part of it would end."""

Few = dict[str, dict[int, int]]
"""By leaf and dim, the number of units of a parameter with fewer units than shards."""


def parts_wanted(graph: ShardGraph) -> Cuts:
    """The parts of axes that would go on in a graph that is propagated."""
    found: Cuts = {}
    sizes = {axis.size for axis in graph.mesh.axes if _divides(axis.size)}
    digits: dict[int, dict[Place, frozenset[int]]] = {}
    for node in graph.dims.operands if sizes else ():
        rule = sharding_of(node).rule
        if id(rule) not in digits:
            declared = rule_of(node, graph.fast_random) if rule.notation else rule
            digits[id(rule)] = few_digits(declared, sizes)
        for place, few in digits[id(rule)].items():
            for axis in _stopped(graph, node, place):
                of, after, _ = axis.stretch
                ends = {after * math.gcd(size, axis.size) for size in few}
                ends -= {after, after * axis.size}
                found.setdefault(of, set()).update(ends)
    return {of: ends for of, ends in found.items() if ends}


def _divides(size: int) -> bool:
    """Whether an axis of that size has parts."""
    return any(size % n == 0 for n in range(2, math.isqrt(size) + 1))


def few_digits(rule: Rule, sizes: set[int]) -> dict[Place, frozenset[int]]:
    """The digits of dims, in the notation of a rule, that a part of some axis has shards for."""
    found: dict[Place, frozenset[int]] = {}
    for meeting in meetings(rule):
        (joint,) = meeting.joints
        partly = (1 < math.gcd(joint.size, size) < size for size in sizes)
        if joint.part is Part.DIGIT and any(partly):
            place = joint.slot, meeting.result, meeting.dim
            found[place] = found.get(place, frozenset()) | {joint.size}
    return found


def _stopped(graph: ShardGraph, node: fx.Node, place: Place) -> Iterator[Axis]:
    """The axes that split a dim on one side of a reader alone, or in another notation."""
    slot, result, dim = place
    for one, other in _sides(graph, node, slot, result):
        yield from set(one.dims[dim].axes) ^ set(other.dims[dim].axes)
        if sharding_of(node).rule.notation:
            yield from _both(one.dims[dim], other.dims[dim])


def _sides(
    graph: ShardGraph, node: fx.Node, slot: int | None, result: int
) -> Iterator[tuple[Layout, Layout]]:
    """A value as it is made, and as it is read, on the side of an op that a place is on."""
    if slot is not None:
        yield result_layout(graph.dims.operands[node][slot]), sharding_of(node).operand(slot)
        return
    made = sharding_of(node).result(result)
    for use in graph.dims.uses[node]:
        if use.result == result:
            yield made, sharding_of(use.reader).operand(use.slot)


def _both(one: DimLayout, other: DimLayout) -> set[Axis]:
    return set(one.axes) & set(other.axes)


def few_units(graph: ShardGraph) -> Few:
    """By leaf and dim, the number of units of parameters of which shards of a reader share units.

    Such are key heads beside more query heads. The parameter is stated over more devices than it
    has units, and split within them for that; but a reader of what is made with it is split over
    the rest of the axis along another factor, so each of its shards needs a whole unit.
    """
    found: dict[str, dict[int, int]] = {}
    units = Units(graph.dims)
    for node, leaf in graph.placeholders():
        stated = next((i.stated for n in (node, *node.users) if (i := info(n)).stated), None)
        if leaf.kind is not LeafKind.PARAM or stated is None:
            continue
        for dim, split in enumerate(stated.layout.dims):
            count = split.size // units.unit(Dim(node, 0, dim)) if split.plain else 1
            if 1 < count < split.blocks[0][0].shards and _shared(graph, node, split.axes[-1]):
                found.setdefault(leaf.name, {})[dim] = count
    return found


def _shared(graph: ShardGraph, start: fx.Node, axis: Axis) -> bool:
    """Whether an axis that splits a value splits another factor of a reader behind it."""
    todo, known = [start], {start}
    while todo:
        node = todo.pop()
        for reader, slot, result in graph.dims.uses[node]:
            sharding = sharding_of(reader)
            had = sharding_of(node).result(result).dim_of(axis)
            if had is None or reader in known:
                continue
            if sharding.operand(slot).dim_of(axis) == had:
                known.add(reader)
                todo.append(reader)
            elif sharding.factor_of(axis) is not None:
                return True
    return False
