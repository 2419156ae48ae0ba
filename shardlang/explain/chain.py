"""The chain of ops and statements that gave a value its layout along one axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import networkx as nx
from torch import fx

from shardlang.explain.types import Link
from shardlang.ir.graph import ShardGraph, constrain, producer, result_layout, sharding_of
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info
from shardlang.ir.origin import Origin, Reason
from shardlang.plan.names import Names, op_name
from shardlang.plan.text import bytes_text

_SHOWN = 3
"""Ops that pass a layout on which are shown at each end of a long chain."""


class Chains:
    """Follows origins through a propagated graph.

    `stores` are the places of the statements by which parameters are stored, by name.
    """

    def __init__(self, graph: ShardGraph, names: Names, stores: Mapping[str, str]) -> None:
        self.graph, self.dims, self.names, self.stores = graph, graph.dims, names, stores
        self.nodes: dict[str, fx.Node] = {node.name: node for node in graph.graph.nodes}
        self._reasons: dict[Axis, nx.DiGraph] = {}

    def links(self, node: fx.Node, axis: Axis) -> tuple[Link, ...]:
        """The reasons why `axis` is where it is in the op that made a value, the nearest first."""
        chain = nx.dfs_preorder_nodes(self.reasons(axis), producer(node)[0])
        origins = ((op, sharding_of(op).origins.get(axis)) for op in chain)
        found = [self._link(op, axis, origin) for op, origin in origins if origin is not None]
        return tuple(_shortened(found))

    def reasons(self, axis: Axis) -> nx.DiGraph:
        """All ops, each with an edge to the one that it has its layout along an axis from."""
        if axis not in self._reasons:
            net = self._reasons[axis] = nx.DiGraph()
            net.add_nodes_from(self.dims.operands)
            pairs = ((op, self._before(op, axis)) for op in self.dims.operands)
            net.add_edges_from((op, before) for op, before in pairs if before is not None)
        return self._reasons[axis]

    def _before(self, node: fx.Node, axis: Axis) -> fx.Node | None:
        """Where a chain goes on."""
        origin = sharding_of(node).origins.get(axis)
        if origin is not None and origin.reason in (Reason.STATED, Reason.STORED):
            return None
        source = self.nodes.get(origin.source) if origin is not None else None
        if source is None or source is node:
            return self._split_operand(node, axis)
        return producer(source)[0] if source.op != "output" else None

    def _split_operand(self, node: fx.Node, axis: Axis) -> fx.Node | None:
        """The op that made the first operand which the axis splits, or which is partial over it."""
        for operand in self.dims.operands[node]:
            layout = result_layout(operand)
            if layout.dim_of(axis) is not None or axis in layout.partial:
                return producer(operand)[0]
        return None

    def _link(self, node: fx.Node, axis: Axis, origin: Origin) -> Link:
        text = _SENTENCES.get(origin.reason, _other)(self, node, axis, origin)
        place = origin.source if origin.reason is Reason.STATED else ""
        if origin.reason is Reason.STORED:
            place = self.stores.get(origin.source, "")
        source = "" if place else info(node).source
        return Link(text, place, spec_line(place), source)

    def where(self, node: fx.Node) -> str:
        """An op as a person names it: `linear` in `model.lm_head`."""
        if node.op == "placeholder":
            return f"`{self.names(node)}`"
        module = info(node).module
        return f"`{op_name(node)}`" + (f" in `{module}`" if module else "")

    def is_operand(self, node: fx.Node, other: fx.Node | None) -> bool:
        """Whether a node reads what another one makes."""
        return any(
            operand is other or producer(operand)[0] is other
            for operand in self.dims.operands[node]
        )


Write = Callable[[Chains, fx.Node, Axis, Origin], str]


def _stated(chains: Chains, node: fx.Node, axis: Axis, origin: Origin) -> str:
    stated = node.args[0] if node.target is constrain else node
    assert isinstance(stated, fx.Node)
    name = chains.names(stated)
    return f"`{name}` is stated so"


def _stored(chains: Chains, node: fx.Node, axis: Axis, origin: Origin) -> str:
    return f"{chains.where(node)} is stored over {axis}, on the largest dim that divides"


def _claimed(chains: Chains, node: fx.Node, axis: Axis, origin: Origin) -> str:
    param = chains.nodes.get(origin.source)
    while param is not None and param.target is constrain:
        param = param.all_input_nodes[0]
    name = chains.names.by_node_name(origin.source) if param is None else chains.names(param)
    return f"{chains.where(node)} is split over {axis} as its parameter `{name}` is"


def _flows(chains: Chains, node: fx.Node, axis: Axis, origin: Origin) -> str:
    source = chains.nodes.get(origin.source)
    if source is None:
        return f"{chains.where(node)} takes it from `{origin.source}`"
    if chains.is_operand(node, source):
        return f"{chains.where(node)} carries it on from what it reads"
    return f"{chains.where(node)} takes it from its reader {chains.where(source)}"


def _cheapest(chains: Chains, node: fx.Node, axis: Axis, origin: Origin) -> str:
    text = f"{chains.where(node)} is split so because that moves the fewest bytes"
    found = (one for one in chains.graph.info.weighed if one.axis == axis)
    weighed = next((one for one in found if node.name in one.names), None)
    if weighed is None or weighed.chosen == weighed.flowed:
        return text
    flowed, chosen = bytes_text(weighed.flowed), bytes_text(weighed.chosen)
    return f"{text}: about {chosen} a step in its chain, {flowed} as layouts had flowed"


def _other(chains: Chains, node: fx.Node, axis: Axis, origin: Origin) -> str:
    return f"{chains.where(node)}: {origin.reason}"


_SENTENCES: dict[Reason, Write] = {
    Reason.STATED: _stated,
    Reason.STORED: _stored,
    Reason.CLAIMED: _claimed,
    Reason.FLOWS: _flows,
    Reason.CHEAPEST: _cheapest,
}


def _shortened(links: list[Link]) -> Iterator[Link]:
    """A long chain without its middle."""
    if len(links) <= 2 * _SHOWN + 1:
        yield from links
        return
    yield from links[:_SHOWN]
    yield Link(f"… {len(links) - 2 * _SHOWN} more ops carry it")
    yield from links[-_SHOWN:]


def spec_line(place: str) -> str:
    """The line of a spec at `file.shard:7`, empty where it cannot be read."""
    file, _, number = place.rpartition(":")
    if not file or not number.isdigit():
        return ""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError):
        return ""
    return lines[int(number) - 1].strip() if int(number) <= len(lines) else ""
