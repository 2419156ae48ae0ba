"""The step program on this device: its forward and its backward as generated code.

Every device-dependent argument becomes a number, every collective a function that holds its group
and sizes, every `device=` the device of the run. What the backward reads of the forward is handed
over in a list, from which it takes each value just before its first use; so nothing is held longer
than the program needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, fx
from torch.fx.node import Argument, map_aggregate

from shardlang.ir.collective import Collective
from shardlang.ir.device_values import LocalShardAt, specialise
from shardlang.ir.experts.route import RouteAt
from shardlang.ir.mesh import product
from shardlang.ir.node import info
from shardlang.ir.spare import reduces_in_place
from shardlang.ir.step import (
    StepProgram,
    Stream,
    collectives_of,
    is_bucket,
    is_collective,
    is_start,
    is_wait,
    record,
    routed_by,
    started_by,
    stream_of,
)
from shardlang.runtime.at_op import AtOp
from shardlang.runtime.collectives import (
    Routed,
    Started,
    StartedTogether,
    connected,
    run_together,
    waited,
)
from shardlang.runtime.direct import direct
from shardlang.runtime.first_run import FirstRun
from shardlang.runtime.handed import taken
from shardlang.runtime.lanes import Lane
from shardlang.runtime.lower import lower
from shardlang.runtime.moves import keep
from shardlang.runtime.opaque import opaque
from shardlang.runtime.region import Regions
from shardlang.runtime.regions import Code, cut

Made = TypeVar("Made")

Forward: TypeAlias = "Half[tuple[Sequence[Tensor], Sequence[object]]]"
Backward: TypeAlias = "Half[Sequence[Tensor]]"


@dataclass(frozen=True, slots=True)
class Half(Generic[Made]):
    """One half of a step on this device.

    Attributes:
        run: the forward takes the leaves, and gives the results and then what is saved; the
            backward takes the list of what is saved and the list of cotangents, both of which it
            empties, and gives the gradients.
        saved: the names of the values that are handed over, in order.
    """

    run: Callable[..., Made]
    saved: tuple[str, ...]


def saved_by(program: StepProgram) -> tuple[str, ...]:
    """The values of the forward that the backward reads, by name, in order."""
    return tuple(
        node.name
        for node in program.graph.nodes
        if node.op != "output"
        and not info(node).backward
        and any(info(user).backward for user in node.users)
    )


Lanes = Mapping[Stream, Lane]
"""Where the collectives of each stream are sent."""


def load_forward(program: StepProgram, lanes: Lanes, regions: Regions | None = None) -> Forward:
    """The forward; with `regions` compiled by them. Collective: call it on every rank."""
    loading, saved = _Loading(program.graph, lanes, regions), saved_by(program)
    for node in program.graph.nodes:
        if node.op != "output" and not info(node).backward:
            loading.add(node)
    results, _ = program.returned
    given = tuple(loading.env[n.name] for n in results)
    kept = tuple(loading.env[name] for name in saved)
    loading.graph.output((given, kept))
    return Half(loading.agreed(loading.code("Forward")), saved)


def load_backward(
    program: StepProgram, lanes: Lanes, saved: Sequence[str], regions: Regions | None = None
) -> Backward:
    """The backward, which takes the values `saved`. Collective: call it on every rank."""
    loading = _Loading(program.graph, lanes, regions)
    loading.take_from(loading.graph.placeholder("saved"), saved)
    cotangents = [n for n in program.graph.find_nodes(op="placeholder") if info(n).backward]
    loading.take_from(loading.graph.placeholder("cotangents"), [n.name for n in cotangents])
    for node in program.graph.nodes:
        if node.op == "call_function" and info(node).backward:
            loading.add(node)
    _, gradients = program.returned
    loading.graph.output(tuple(loading.value(n) for n in gradients))
    return Half(loading.agreed(loading.code("Backward")), tuple(saved))


def load_graph(
    graph: fx.Graph, lanes: Lanes, regions: Regions | None = None, *, alone: bool = False
) -> Callable[..., Sequence[Tensor]]:
    """A whole graph, such as the gathers after an update. Collective to load.

    Args:
        alone: not all ranks run it, so what fails to compile is told by those who call it.
    """
    loading = _Loading(graph, lanes, regions)
    for node in graph.nodes:
        if node.op != "output":
            loading.add(node)
    loading.graph.output(fx.map_arg(graph.output_node().args[0], loading.value))
    run: Callable[..., Sequence[Tensor]] = loading.code("Piece")
    return run if alone else loading.agreed(run)


def load_calls(
    graph: fx.Graph,
    calls: Sequence[fx.Node],
    takes: Sequence[str],
    gives: Sequence[str],
    lanes: Lanes,
    regions: Regions | None = None,
) -> Callable[[list[object]], Sequence[object]]:
    """Some calls of a graph, which not all ranks run: what fails to compile is told by the caller.

    Args:
        takes: the values that they read and do not make; the code empties the list of these.
        gives: the values that it gives.
    """
    loading = _Loading(graph, lanes, regions)
    loading.take_from(loading.graph.placeholder("values"), takes)
    for node in calls:
        loading.add(node)
    loading.graph.output(tuple(loading.env[name] for name in gives))
    return loading.code("Part")


class _Loading:
    """The code of one half while it is written."""

    def __init__(self, program: fx.Graph, lanes: Lanes, regions: Regions | None) -> None:
        self.lanes, self.graph, self.regions = lanes, fx.Graph(), regions
        self._opaque = opaque(program) if regions is not None else set()
        self._computed: dict[fx.Node, object] = {}
        self._nodes: dict[str, fx.Node] = {}
        self.groups = lanes[Stream.ACTIVATIONS].groups
        self.env: dict[str, fx.Node] = {}
        self.held: dict[str, object] = {}
        self._lists: dict[str, tuple[fx.Node, int]] = {}
        self._unmoved: dict[fx.Node, fx.Node] = {}

    def take_from(self, values: fx.Node, names: Sequence[str]) -> None:
        """Values by name that lie in a list."""
        self._lists.update({name: (values, place) for place, name in enumerate(names)})

    def code(self, name: str) -> Callable[..., Any]:
        """What has been written; an exception that it raises names the op of the model."""
        graph = self.graph
        if self.regions is not None:
            graph = cut(Code(graph, self._computed, self.held), self.regions, _Named)
        return AtOp(fx.GraphModule(self.held, graph, name).forward, self._nodes)

    def agreed(self, run: Callable[..., Made]) -> Callable[..., Made]:
        """The code so that what fails to compile on one rank is refused on all."""
        return run if self.regions is None else FirstRun(run, self.regions, self.groups)

    def value(self, node: fx.Node) -> fx.Node:
        """A value of the program; one that lies in a list is taken from it when first read."""
        if node.name not in self.env:
            self.env[node.name] = self.graph.call_function(taken, self._lists[node.name])
        return self.env[node.name]

    def add(self, node: fx.Node) -> None:
        """One node of the program; one that does nothing gives way to what it reads."""
        if (is_collective(node) or is_wait(node)) and self._does_nothing(node):
            return
        source = self._unmoved.get(node)
        if source is not None:
            self.env[node.name] = self.value(source)
            return
        self.env[node.name] = self._made(node)
        self.env[node.name].name = node.name

    def _does_nothing(self, node: fx.Node) -> bool:
        """Whether a collective moves nothing here; its values are then those that it is given."""
        sent = started_by(node) if is_wait(node) else node
        pairs, lane = collectives_of(sent), self.lanes[stream_of(sent)]
        if routed_by(sent) or any(lower(c, lane) is not keep for _, c in pairs):
            return False
        if is_start(node):
            return True
        if not is_bucket(sent):
            self.env[node.name] = self.value(pairs[0][0])
            return True
        for user in node.users:
            place = user.args[1]
            assert isinstance(place, int)
            self._unmoved[user] = pairs[place][0]
        return True

    def _made(self, node: fx.Node) -> fx.Node:
        if node.op == "placeholder":
            return self.graph.placeholder(node.name)
        if is_collective(node):
            return self._collective(node)
        if is_wait(node):
            return self._call(waited, node, (self.value(started_by(node)),))
        if node.target is record:
            return self._recorded(node)
        args, kwargs = self._here(node)
        made = self.graph.create_node(node.op, direct(node.target), args, kwargs)
        self._nodes[node.name] = node
        if node not in self._opaque:
            self._computed[made] = node.target
        return made

    def _here(self, node: fx.Node) -> tuple[Any, Any]:
        """The arguments of a node on this device."""
        args, kwargs = specialise((node.args, node.kwargs), self.groups.coord)
        return map_aggregate(args, self._resolved), map_aggregate(kwargs, self._resolved)

    def _resolved(self, value: Argument) -> Argument:
        if isinstance(value, fx.Node):
            return self.value(value)
        if isinstance(value, torch.device):
            return self.groups.device
        return self._hold(value) if isinstance(value, (LocalShardAt, RouteAt)) else value

    def _on_device(self, value: Argument) -> Argument:
        return self.groups.device if isinstance(value, torch.device) else value

    def _hold(self, value: object) -> fx.Node:
        """A reference to an object that has no literal form: the module holds it."""
        name = f"held_{len(self.held)}"
        self.held[name] = value
        return self.graph.create_node("get_attr", name)

    def _collective(self, node: fx.Node) -> fx.Node:
        """A call of the prebuilt collective in place of its node."""
        pairs, by = collectives_of(node), routed_by(node)
        values = [self.value(x) for x, _ in pairs]
        label = label_of(node, pairs[0][1])
        if by is not None:
            route = Routed(pairs[0][1], self.groups, label)
            return self._call(route, node, (values[0], self.value(by)))
        lane, aside, spare = self.lanes[stream_of(node)], is_start(node), self._is_spare(node)
        actions = [connected(lower(c, lane, label), aside, spare) for _, c in pairs]
        if is_bucket(node):
            together = StartedTogether if aside else run_together
            return self._call(partial(together, actions), node, (tuple(values),))
        action = partial(Started, actions[0]) if aside else actions[0]
        return self._call(action, node, (values[0],))

    def _is_spare(self, node: fx.Node) -> bool:
        """Whether an all-reduce may put the sum into what it is given.

        A backend of which nothing is known may use that memory for something else.
        """
        return reduces_in_place(node) and (self.regions is None or self.regions.lasting)

    def _recorded(self, node: fx.Node) -> fx.Node:
        """A call of an op under autograd."""
        given: Any = node.args
        target, args, kwargs, xs, wanted, ends = given
        args, kwargs = specialise((args, kwargs), self.groups.coord)
        args, kwargs = (map_aggregate(one, self._on_device) for one in (args, kwargs))
        call = partial(record, target, args, kwargs, wanted=wanted, given=ends)
        return self._call(call, node, (tuple(self.value(x) for x in xs),))

    def _call(
        self, call: Callable[..., object], node: fx.Node, args: tuple[Argument, ...]
    ) -> fx.Node:
        return self.graph.call_function(_Named(call, node.name), args)


class _Named:
    """A callable with the names by which generated code refers to it."""

    def __init__(self, call: Callable[..., object], name: str) -> None:
        self.call = call
        self.__name__ = self.__qualname__ = name
        self.__module__ = "shardlang.runtime"

    def __call__(self, *args: object) -> object:
        return self.call(*args)


def label_of(node: fx.Node, collective: Collective) -> str:
    """The collective's name for messages: `forward all_reduce over tp in layers.0 (m.py:12)`."""
    known = info(node)
    direction = "backward" if known.backward else "forward"
    where = f" in {known.module}" if known.module else ""
    line = f" ({known.source})" if known.source else ""
    return f"{direction} {known.change} over {product(collective.axes)}{where}{line}"
