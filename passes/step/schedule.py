"""schedule: collectives run beside the ops that do not need them.

Each collective that sends becomes a start and a wait. The wait stands in front of the first op that
reads what it gives. The start stands where its operands are there; of the starts in one stream and
over one group, however, each keeps its place behind the one before it, so that all devices send in
one order, and few are in flight at once:

- Gathers of parameters could all start at once. The next one starts when the one before it is
  waited for, so that one is used while one is in flight; or several small ones, which together give
  about as many bytes as the largest gather of the step; or as many as `prefetch` has bytes for.
- A gradient that nothing reads any more is waited for when the next one of its group is to start,
  since what it is reduced from lies there till then; or at the end, if the sum takes its place.
- Of activations and their gradients two may be in flight.

Ops that only put together what a start sends, views and sums, come forward to it. So the gradient
of an activation is in flight while a product makes that of the weight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from torch import fx

from shardlang.ir.graph import is_item
from shardlang.ir.leaf import LeafKind
from shardlang.ir.mesh import Mesh
from shardlang.ir.node import info
from shardlang.ir.step import (
    StepProgram,
    Stream,
    collectives_of,
    is_start,
    is_wait,
    started_by,
    stream_of,
)
from shardlang.ir.step_options import StepOptions
from shardlang.ir.views import gives_view
from shardlang.passes.step.split import (
    bytes_given,
    given_at_once,
    is_alone,
    is_pointwise,
    only_returned,
    split,
    summed_in_place,
)

AHEAD = 2
"""Collectives of activations that may be in flight over one group."""

SLIGHT = 16
"""A gather of one part in so many of the largest may be in flight beside it."""

NEAR = 16
"""So many places an op may come forward that only puts together what a start sends."""

Lane = tuple[Stream, tuple[str, ...]]
"""A stream over one group of devices."""


def schedule(program: StepProgram, options: StepOptions) -> StepProgram:
    """Part every collective into its start and its wait, and put these in their places."""
    taken = program.graph.find_nodes(op="placeholder")[: len(program.leaves)]
    pairs = zip(taken, program.leaves, strict=True)
    held = [node for node, leaf in pairs if leaf.kind is not LeafKind.INPUT]
    start_early(program.graph, program.mesh, held, options)
    return program


def start_early(
    graph: fx.Graph, mesh: Mesh, held: Collection[fx.Node], options: StepOptions
) -> None:
    """The same for a graph of a step; `held` are the inputs that may be gathered ahead."""
    split(graph, held)
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    order = _Order(graph, mesh, held, options.prefetch)
    for backward in (False, True):
        order.add([node for node in nodes if info(node).backward == backward])
    _relink(graph, order.made)


class _Order:
    """The nodes in their new order, while it is made.

    Attributes:
        made: the nodes so far.
    """

    def __init__(
        self, graph: fx.Graph, mesh: Mesh, held: Collection[fx.Node], prefetch: int | None
    ) -> None:
        self.made: list[fx.Node] = []
        self._mesh = mesh
        self._done = set(graph.find_nodes(op="placeholder"))
        self._given, self._returned = given_at_once(graph, held), only_returned(graph)
        self._waits = {started_by(node): node for node in graph.nodes if is_wait(node)}
        gathers = [node for node in self._waits if stream_of(node) is Stream.GATHERS]
        largest = max((bytes_given(node, mesh) for node in gathers), default=0)
        self._most = largest + largest // SLIGHT if prefetch is None else prefetch
        self._next: dict[Lane, deque[fx.Node]] = {}
        self._flying: dict[Lane, list[fx.Node]] = {}
        self._places: dict[fx.Node, int] = {}
        self._place = 0

    def add(self, nodes: Collection[fx.Node]) -> None:
        """The nodes of one half, in the order of its text."""
        for start in filter(is_start, nodes):
            lane = _lane(start)
            self._next.setdefault(lane, deque()).append(start)
            self._flying.setdefault(lane, [])
        self._start()
        self._places = {node: place for place, node in enumerate(nodes)}
        for self._place, node in enumerate(nodes):
            if node not in self._done and not is_start(node) and not self._is_late(node):
                for source in node.all_input_nodes:
                    self._make(source)
                self._start()
                self._make(node)
                self._start()
        for node in nodes:
            self._make(node)

    def _is_late(self, node: fx.Node) -> bool:
        """Whether a node is made no sooner than another one reads it."""
        if is_wait(node):
            return True
        source = next((x for x in node.all_input_nodes if x.op != "placeholder"), None)
        if source is None or source in self._done or not is_alone(node):
            return False
        if is_item(node) and is_wait(source):
            return True
        return node in self._returned and source in self._returned and self._is_late(source)

    def _make(self, node: fx.Node) -> None:
        """Put a node behind the others, and before it what it reads."""
        if node in self._done:
            return
        if is_start(node):
            queue = self._next[_lane(node)]
            while node not in self._done:
                self._launch(queue[0])
            return
        for source in node.all_input_nodes:
            self._make(source)
        self._put(node)
        if is_wait(node):
            start = started_by(node)
            self._flying[_lane(start)].remove(start)

    def _put(self, node: fx.Node) -> None:
        self.made.append(node)
        self._done.add(node)

    def _launch(self, start: fx.Node) -> None:
        """Make the next start of a lane."""
        lane = _lane(start)
        self._next[lane].popleft()
        for source in start.all_input_nodes:
            self._make(source)
        self._put(start)
        self._flying[lane].append(start)

    def _start(self) -> None:
        """Start all that can be started."""
        for lane, queue in self._next.items():
            while queue and self._is_ready(queue[0]) and self._has_room(lane, queue[0]):
                self._launch(queue[0])

    def _is_ready(self, start: fx.Node) -> bool:
        return all(self._is_there(x) for x in start.all_input_nodes)

    def _is_there(self, node: fx.Node) -> bool:
        """Whether a value is there, or is made of what is there by ops that may stand anywhere."""
        if node in self._done or node in self._given:
            return True
        if is_start(node) or is_wait(node) or not (self._is_late(node) or self._is_near(node)):
            return False
        return all(self._is_there(x) for x in node.all_input_nodes)

    def _is_near(self, node: fx.Node) -> bool:
        """Whether an op costs little and comes next, so that it can as well stand here."""
        if self._places.get(node, 0) > self._place + NEAR or info(node).random:
            return False
        return gives_view(node.target) or is_pointwise(node.target)

    def _has_room(self, lane: Lane, start: fx.Node) -> bool:
        """Whether one more may be in flight; gradients make room by waiting for one before."""
        flying = self._flying[lane]
        if lane[0] is Stream.ACTIVATIONS:
            return len(flying) < AHEAD
        if lane[0] is Stream.GATHERS:
            return self._bytes(*flying, start) <= self._most
        for other in [] if summed_in_place(start) else list(flying):
            if not summed_in_place(other):
                self._make(self._waits[other])
        return True

    def _bytes(self, *starts: fx.Node) -> int:
        return sum(bytes_given(start, self._mesh) for start in starts)


def _lane(start: fx.Node) -> Lane:
    _, first = collectives_of(start)[0]
    return stream_of(start), tuple(axis.name for axis in first.axes)


def _relink(graph: fx.Graph, nodes: Sequence[fx.Node]) -> None:
    """Let the nodes stand in an order, before the output."""
    behind = graph.output_node()
    for node in reversed(nodes):
        if node.next is not behind:
            behind.prepend(node)
        behind = node
