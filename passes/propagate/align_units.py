"""align_units: keep heads together where a stated dim does not split evenly between them.

A projection's output dim that a reshape later takes apart as (heads, size of a head) is split
between heads, not inside one: 5 heads of 64 over 2 devices are 192 and 128 rows, not 160 and 160.
The unit is found on the dimension graph, from the stated dim to the nearest reshape; an even split
is unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import networkx as nx
from torch import fx

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.dims import Dim, DimGraph, Part, Vertex
from shardlang.ir.factor import Factor
from shardlang.ir.graph import ShardGraph
from shardlang.ir.leaf import LeafKind
from shardlang.ir.node import info, set_info
from shardlang.ir.records import Stated
from shardlang.passes.invariants.invariant import Invariant, View, invariant


@invariant
def units_whole(view: View) -> Iterator[str]:
    """A stated dim of a parameter is split between the units that the nearest reshapes make."""
    params, units = _params(view.graph), Units(view.graph.dims)
    for node in view.graph.dims.operands:
        stated = info(node).stated
        if stated is not None and (node in params or _reads(node, params)):
            layout = aligned(node, stated, units).layout
            if layout != stated.layout:
                yield f"{node} is stated as {stated.layout}, in units {layout}"


@dataclass(frozen=True, slots=True)
class AlignUnits:
    """Refine the stated layouts of parameters to the units that their dims are made of."""

    name: str = "align_units"
    establishes: ClassVar[tuple[Invariant, ...]] = (units_whole,)
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Align every stated parameter."""
        params, units = _params(graph), Units(graph.dims)
        for node in graph.dims.operands:
            stated = info(node).stated
            if stated is not None and (node in params or _reads(node, params)):
                set_info(node, replace(info(node), stated=aligned(node, stated, units)))
        return graph


def _params(graph: ShardGraph) -> set[fx.Node]:
    return {node for node, leaf in graph.placeholders() if leaf.kind is LeafKind.PARAM}


def _reads(node: fx.Node, params: set[fx.Node]) -> bool:
    return bool(node.args) and node.args[0] in params


def aligned(node: fx.Node, stated: Stated, units: Units) -> Stated:
    """The stated layout with every split dim in units."""
    layout = stated.layout
    for dim, split in enumerate(layout.dims):
        if split.axes:
            layout = layout.replaced(dim, in_units(split, units.unit(Dim(node, 0, dim))))
    return replace(stated, layout=layout)


def in_units(dim: DimLayout, unit: int) -> DimLayout:
    """The dim with each split factor cut so that `unit` indices stay together."""
    if unit == 1:
        return dim
    blocks = []
    for block in dim.blocks:
        last = block[-1]
        fits = last.axes and last.size % unit == 0 and last.size // unit >= last.shards
        blocks.append(
            (*block[:-1], Factor(last.size // unit, last.axes), Factor(unit)) if fits else block
        )
    return DimLayout(tuple(blocks))


class Units:
    """The units of dims: how many neighbouring indices of each stay together."""

    def __init__(self, dims: DimGraph) -> None:
        self.dims = dims
        self._known: dict[Vertex, int] = {}

    def unit(self, start: Dim) -> int:
        """The least common multiple of the units that the nearest reshapes ask for.

        From a dim one gets to the dims that share a factor with it, but not past an op that takes
        it apart into digits: that one asks for the unit of its first digit. All dims that one gets
        to and back from have one unit, and are looked at once.
        """
        if start not in self._known:
            walk = nx.generic_bfs_edges(self.dims.net, start, neighbors=self._beside)
            asked = (u for _, end in walk for u in self._digits(end))
            unit = math.lcm(*self._digits(start), *asked)
            around = nx.generic_bfs_edges(self.dims.net, start, neighbors=self._same)
            self._known.update(dict.fromkeys((start, *(end for _, end in around)), unit))
        return self._known[start]

    def _same(self, vertex: Vertex) -> Iterator[Vertex]:
        """The vertices that have the same units, and all that these have."""
        if isinstance(vertex, Dim):
            found = self.dims.factors(vertex)
            return (factor for factor, joint in found if joint.part is Part.ALL)
        return (dim for dim, joint in self.dims.dims(vertex) if joint.part is Part.ALL)

    def _beside(self, vertex: Vertex) -> Iterator[Vertex]:
        """The vertices that have the same units."""
        if isinstance(vertex, Dim):
            found = self.dims.factors(vertex)
            return (factor for factor, joint in found if joint.part is not Part.DIGIT)
        return (dim for dim, joint in self.dims.dims(vertex) if joint.part is Part.ALL)

    def _digits(self, vertex: Vertex) -> Iterator[int]:
        """The units of the digits that some op takes a dim apart into."""
        if isinstance(vertex, Dim):
            for _, joint in self.dims.factors(vertex):
                if joint.part is Part.DIGIT and joint.size > 1:
                    yield joint.unit
