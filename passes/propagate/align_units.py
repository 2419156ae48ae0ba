"""align_units: keep heads in one piece where a stated dim does not split evenly between them.

A projection's output dim that a reshape later takes apart as (heads, size of a head) is split
between heads, not inside one: 5 heads of 64 over 2 devices are 192 and 128 rows, not 160 and 160.
The unit is found on the dimension graph, from the stated dim to the nearest reshape; an even split
is unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import fx

from shardlang.ir.graph import ShardGraph, producer, sharding_of
from shardlang.ir.layout import DimLayout, Factor
from shardlang.ir.leaf import LeafKind
from shardlang.ir.node import info, set_info
from shardlang.ir.records import Stated
from shardlang.ir.rule import DimSpec
from shardlang.passes.propagate.flow import operands_of, uses_of

Place = tuple[fx.Node, int, int]
"""(op node, result index, dim)."""


@dataclass(frozen=True, slots=True)
class AlignUnits:
    """Refine the stated layouts of parameters to the units that their dims are made of."""

    name: str = "align_units"

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Align every stated parameter."""
        params = {n for n, leaf in graph.placeholders() if leaf.kind is LeafKind.PARAM}
        nodes = [node for node in graph.graph.nodes if info(node).sharding is not None]
        walk = Walk({node: operands_of(node) for node in nodes})
        for node in nodes:
            stated = info(node).stated
            if stated is not None and (node in params or _reads(node, params)):
                set_info(node, replace(info(node), stated=aligned(node, stated, walk)))
        return graph


def _reads(node: fx.Node, params: set[fx.Node]) -> bool:
    return bool(node.args) and node.args[0] in params


def aligned(node: fx.Node, stated: Stated, walk: Walk) -> Stated:
    """The stated layout with every split dim in units."""
    layout = stated.layout
    for dim, here in enumerate(layout.dims):
        if here.axes:
            layout = layout.replaced(dim, in_units(here, walk.unit((node, 0, dim))))
    return replace(stated, layout=layout)


def in_units(dim: DimLayout, unit: int) -> DimLayout:
    """The dim with each split factor cut so that `unit` indices stay together."""
    if unit == 1:
        return dim
    blocks = []
    for block in dim.blocks:
        last = block[-1]
        fits = last.axes and last.size % unit == 0 and last.size // unit >= last.ways
        blocks.append(
            (*block[:-1], Factor(last.size // unit, last.axes), Factor(unit)) if fits else block
        )
    return DimLayout(tuple(blocks))


class Walk:
    """A search over the dimension graph for the reshapes nearest to a dim."""

    def __init__(self, calls: dict[fx.Node, list[fx.Node]]) -> None:
        self.calls = calls

    def unit(self, start: Place) -> int:
        """The least common multiple of the units that the nearest reshapes ask for."""
        seen, queue, unit = {start}, [start], 1
        while queue:
            place = queue.pop()
            for found, spec, sizes in self._joints(place):
                if found is None:
                    unit = math.lcm(unit, _minor(spec, sizes))
                elif found not in seen:
                    seen.add(found)
                    queue.append(found)
        return unit

    def _joints(self, place: Place) -> Iterator[tuple[Place | None, DimSpec, dict[str, int]]]:
        """Dims joined to a dim by one op: places to go on from, or None with a compound spec."""
        node, index, dim = place
        if node.op == "call_function" and index < len(sharding_of(node).rule.results):
            yield from self._through(node, sharding_of(node).rule.results[index][dim])
        for user, slot, used in uses_of(node, self.calls):
            if used == index:
                yield from self._through(user, sharding_of(user).rule.operands[slot].dims[dim])

    def _through(
        self, node: fx.Node, spec: DimSpec
    ) -> Iterator[tuple[Place | None, DimSpec, dict[str, int]]]:
        rule = sharding_of(node).rule
        sizes = dict(rule.sizes)
        for block in spec:
            if len([name for name in block if sizes[name] > 1]) > 1:
                yield None, (block,), sizes
                continue
            for name in block:
                yield from self._dims_of(node, name, sizes)

    def _dims_of(
        self, node: fx.Node, factor: str, sizes: dict[str, int]
    ) -> Iterator[tuple[Place | None, DimSpec, dict[str, int]]]:
        rule = sharding_of(node).rule
        for index, dims in enumerate(rule.results):
            for dim, spec in enumerate(dims):
                if spec == ((factor,),):
                    yield (node, index, dim), spec, sizes
        for slot, operand in enumerate(rule.operands):
            for dim, spec in enumerate(operand.dims):
                if spec == ((factor,),):
                    source, index = producer(self.calls[node][slot])
                    yield (source, index, dim), spec, sizes


def _minor(spec: DimSpec, sizes: dict[str, int]) -> int:
    """The size below the major factor of a compound dim."""
    names = [name for name in spec[0] if sizes[name] > 1]
    return math.prod(sizes[name] for name in names[1:])
