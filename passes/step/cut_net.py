"""The network of a cut, whose capacities follow from two prices, and the cuts at many prices.

As an operation costs more and a byte stays as it is, only edges from the source cost more: the
values that are asked for at the higher price are asked for at the lower one too (Gallo, Grigoriadis
and Tarjan, 1989). So a cut between two that are known is looked for among the vertices alone in
which these differ. These mostly fall into small parts that no edge joins, those of a repeated block
among them, and of alike parts one is cut.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import networkx as nx
from networkx.algorithms.flow import boykov_kolmogorov
from torch import fx

THERE, ASKED = "there", "asked for"

Vertex = str | tuple[str, fx.Node]
"""The source, the sink, or one of the two vertices of a value: `in` and `out`."""


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge with the capacity of some bytes or of some operations; of neither, it is not cut."""

    source: Vertex
    target: Vertex
    bytes: int | None = None
    work: int | None = None

    def capacity(self, per_byte: int, per_work: int) -> int | None:
        """At some prices; None where it is not cut."""
        if self.bytes is None and self.work is None:
            return None
        return per_byte * (self.bytes or 0) + per_work * (self.work or 0)


@dataclass(slots=True)
class CutNet:
    """A network in which edges with operations come from the source."""

    edges: list[Edge] = field(default_factory=list)
    _at: dict[Vertex, list[int]] = field(default_factory=lambda: defaultdict(list))
    _known: dict[Fraction, frozenset[Vertex]] = field(default_factory=dict)

    def add(
        self, source: Vertex, target: Vertex, bytes: int | None = None, work: int | None = None
    ) -> None:
        """Add an edge. All are added before the first cut."""
        assert work is None or source == THERE, "operations are those of edges from the source"
        for vertex in {source, target} - {THERE, ASKED}:
            self._at[vertex].append(len(self.edges))
        self.edges.append(Edge(source, target, bytes, work))

    def asked(self, per_byte: int, per_work: int) -> frozenset[Vertex]:
        """The vertices on the side of the sink in the cheapest cut, as few as possible."""
        price = Fraction(per_work, per_byte)
        if price not in self._known:
            dearer = [one for one in self._known if one > price]
            cheaper = [one for one in self._known if one < price]
            least = self._known[min(dearer)] if dearer else frozenset()
            most = self._known[max(cheaper)] if cheaper else frozenset(self._at)
            found = self._among(most - least, least, per_byte, per_work)
            self._known[price] = least | found
        return self._known[price]

    def _among(
        self, free: Collection[Vertex], asked: Collection[Vertex], per_byte: int, per_work: int
    ) -> frozenset[Vertex]:
        """Those of some vertices that are asked for; others are there, or asked for in any case."""

        def end(vertex: Vertex) -> Vertex:
            if vertex in free or vertex in (THERE, ASKED):
                return vertex
            return ASKED if vertex in asked else THERE

        edges: list[Priced] = []
        for number in sorted({number for one in free for number in self._at[one]}):
            edge = self.edges[number]
            source, target = end(edge.source), end(edge.target)
            if source != target and source != ASKED and target != THERE:
                edges.append((source, target, edge.capacity(per_byte, per_work)))
        known: dict[object, frozenset[int]] = {}
        found = (asked_in(*one, known) for one in parts_of(sorted(free, key=self._place), edges))
        return frozenset(itertools.chain.from_iterable(found))

    def _place(self, vertex: Vertex) -> int:
        """Where the first edge of a vertex stands: alike parts have their vertices in one order."""
        return self._at[vertex][0]


Priced = tuple[Vertex, Vertex, int | None]
"""An edge with its capacity at some prices."""


def parts_of(
    vertices: Sequence[Vertex], edges: Sequence[Priced]
) -> Iterator[tuple[list[Vertex], list[Priced]]]:
    """Vertices in the parts that no edge joins, each with the edges that touch it."""
    beside = nx.Graph()
    beside.add_nodes_from(vertices)
    beside.add_edges_from((a, b) for a, b, _ in edges if a != THERE and b != ASKED)
    part_of: dict[Vertex, int] = {}
    for number, part in enumerate(nx.connected_components(beside)):
        part_of.update(dict.fromkeys(part, number))
    made: dict[int, tuple[list[Vertex], list[Priced]]] = defaultdict(lambda: ([], []))
    for one in vertices:
        made[part_of[one]][0].append(one)
    for edge in edges:
        made[part_of[edge[1] if edge[0] == THERE else edge[0]]][1].append(edge)
    yield from made.values()


def asked_in(
    part: Sequence[Vertex], edges: Sequence[Priced], known: dict[object, frozenset[int]]
) -> Iterator[Vertex]:
    """The vertices of a part that are asked for.

    Args:
        known: those of parts that were cut before, by their form; repeated blocks have one.
    """
    numbers: dict[Vertex, object] = {THERE: THERE, ASKED: ASKED}
    numbers.update((one, i) for i, one in enumerate(part))
    form = len(part), tuple((numbers[a], numbers[b], capacity) for a, b, capacity in edges)
    if form not in known:
        net = nx.DiGraph()
        net.add_nodes_from([THERE, ASKED])
        for edge in form[1]:
            _add(net, *edge)
        _, (_, found) = nx.minimum_cut(net, THERE, ASKED, flow_func=boykov_kolmogorov)
        known[form] = frozenset(found) - {ASKED}
    return (one for i, one in enumerate(part) if i in known[form])


def _add(net: nx.DiGraph, source: object, target: object, capacity: int | None) -> None:
    """Add an edge, beside one that may be there between the two."""
    known = net.get_edge_data(source, target)
    if capacity is None or (known is not None and "capacity" not in known):
        net.add_edge(source, target)
        net.edges[source, target].pop("capacity", None)
    else:
        net.add_edge(source, target, capacity=capacity + (known["capacity"] if known else 0))
