"""The compute between collectives as regions, each compiled as one graph.

The code of a step is cut where an op runs as it is: a start, a wait, a draw, a route. What lies
between two cuts is a region, in the order of the text, so collectives start and end where the
program says. Regions of one text whose inputs lie alike, as those of repeated layers, are compiled
once. A region is given its inputs in a list that it empties: each is let go after its last use.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from shardlang.ir.step import makes_memory
from shardlang.ir.views import gives_view
from shardlang.runtime.handed import taken
from shardlang.runtime.region import Memory, Region, Regions

FEWEST = 2
"""So many ops that compute make a region; a single one is a kernel already."""

Named = Callable[[Callable[..., object], str], Callable[..., object]]


@dataclass(frozen=True, slots=True)
class Code:
    """The code of a graph on one device, before it is cut.

    Attributes:
        computed: the ops that a region may take in, with their targets in the program.
        held: the objects to which `get_attr` nodes refer, by name.
    """

    graph: fx.Graph
    computed: Mapping[fx.Node, object]
    held: Mapping[str, object]


def cut(code: Code, regions: Regions, named: Named) -> fx.Graph:
    """The graph with calls of compiled regions in the place of ops."""
    return _Cut(code, regions, named).run()


class _Cut:
    """The new graph while it is made, and the region that is being gathered."""

    def __init__(self, code: Code, regions: Regions, named: Named) -> None:
        self.code, self.regions, self.named = code, regions, named
        self.made = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.pending: dict[fx.Node, None] = {}
        self.settled: set[fx.Node] = set()
        self.computed = {n for n in code.computed if not _is_mixed(n, code.computed)}

    def run(self) -> fx.Graph:
        """Copy every node, those of a region together."""
        for node in self.code.graph.nodes:
            if node in self.pending or node in self.env:
                continue
            if node in self.computed and not self._picks_from_outside(node):
                self._gather(node)
                continue
            if not self._may_come_first(node):
                self._end_region()
            self.env[node] = self.made.node_copy(node, self.env.__getitem__)
        return self.made

    def _gather(self, node: fx.Node) -> None:
        """Take an op into the region, with what picks its results."""
        self.pending[node] = None
        self.pending.update((user, None) for user in node.users if _picks(user))

    def _picks_from_outside(self, node: fx.Node) -> bool:
        return _picks(node) and node.all_input_nodes[0] in self.env

    def _may_come_first(self, node: fx.Node) -> bool:
        """Whether a node may stand in front of the region that is being gathered."""
        free = node.op in ("placeholder", "get_attr") or node.target is taken
        return free or self._picks_from_outside(node)

    def _end_region(self) -> None:
        nodes, self.pending = list(self.pending), {}
        if sum(self._computes(node) for node in nodes) >= FEWEST:
            self._compile(nodes)
            return
        for node in nodes:
            self.env[node] = self.made.node_copy(node, self.env.__getitem__)

    def _computes(self, node: fx.Node) -> bool:
        return not _picks(node) and not gives_view(self.code.computed[node])

    def _memory(self, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> tuple[Memory, ...]:
        """In whose memory each result of a region lies."""
        places = {node: place for place, node in enumerate(inputs)}
        found = []
        for node in outputs:
            base = self._base(node, places)
            own = makes_memory(self.code.computed.get(base))
            found.append(Memory(places.setdefault(base, len(places)), own))
        return tuple(found)

    def _base(self, node: fx.Node, inputs: Collection[fx.Node]) -> fx.Node:
        """The value of which another is a view, or one of several results."""
        while node not in inputs and (_picks(node) or gives_view(self.code.computed[node])):
            (node, *_) = node.all_input_nodes
        return node

    def _compile(self, nodes: Sequence[fx.Node]) -> None:
        """Put a call of a region in the place of its ops."""
        inside = set(nodes)
        inputs = [n for n in _read_by(nodes) if n.op != "get_attr"]
        outputs = [n for n in nodes if not inside.issuperset(n.users)]
        region = _region(nodes, inputs, outputs, self.code.held, self._memory(inputs, outputs))
        checked = [i for i, n in enumerate(inputs) if n not in self.settled]
        call = self.named(self.regions.site(region, checked), f"region_{nodes[0].name}")
        given = self.made.call_function(list, (tuple(self.env[n] for n in inputs),))
        made = self.made.call_function(call, (given,))
        for place, node in enumerate(outputs):
            self.env[node] = self.made.call_function(operator.getitem, (made, place))
            self.env[node].name = node.name
        self.settled.update(outputs)


def _picks(node: fx.Node) -> bool:
    return node.target is operator.getitem


def _is_mixed(node: fx.Node, computed: Mapping[fx.Node, object]) -> bool:
    """Whether an op gives several values that something else than what picks one of them reads."""
    picked = [_picks(user) and user in computed for user in node.users]
    return any(picked) and not all(picked)


def _read_by(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """What the ops of a region read that is not made in it."""
    inside = set(nodes)
    read = {x: None for node in nodes for x in node.all_input_nodes if x not in inside}
    return list(read)


def _region(
    nodes: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    held: Mapping[str, object],
    memory: tuple[Memory, ...],
) -> Region:
    """The ops as a graph that takes one list and gives a tuple."""
    graph = fx.Graph()
    values = graph.placeholder("values")
    env = {
        node: graph.call_function(operator.getitem, (values, place))
        for place, node in enumerate(inputs)
    }
    used = {}
    for node in _read_by(nodes):
        if node.op == "get_attr":
            env[node] = graph.node_copy(node)
            used[str(node.target)] = held[str(node.target)]
    for node in nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(tuple(env[n] for n in outputs))
    return Region(graph, used, memory)
