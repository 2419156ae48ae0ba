"""weigh: what propagation left open, decided over chains of ops by all the bytes that they move.

Propagation goes from op to op. Here the ways of many ops are weighed together, axis by axis: what
is gathered, scattered and reduced between them, forward and backward, each layout of a value once
for all its readers, and a little for their operations. The least of all is taken (`eliminate`), and
what propagation had is among them. Nothing that is stated or claimed is changed. Invariants: those
of propagation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from shardlang.ir.graph import ShardGraph, sharding_of
from shardlang.ir.mesh import Axis
from shardlang.ir.origin import Origin, Reason
from shardlang.ir.records import Weighed
from shardlang.passes.invariants.invariant import Invariant
from shardlang.passes.propagate.flow import Flow
from shardlang.passes.propagate.tables import lay_out_tables, make_whole
from shardlang.passes.weigh.eliminate import cheapest
from shardlang.passes.weigh.network import UNIT, Network
from shardlang.passes.weigh.options import Option
from shardlang.passes.weigh.ways import Ways


@dataclass(frozen=True, slots=True)
class Weigh:
    """Decide over chains; see the module."""

    name: str = "weigh"
    establishes: ClassVar[tuple[Invariant, ...]] = ()
    retires: ClassVar[tuple[Invariant, ...]] = ()

    def run(self, graph: ShardGraph) -> ShardGraph:
        """Decide along every axis of the mesh."""
        flow = Flow(graph)
        make_whole(flow.tables)
        for axis in graph.mesh.axes if graph.weighs else ():
            weigh(flow, axis)
        lay_out_tables(graph, flow.tables)
        return graph


def weigh(flow: Flow, axis: Axis) -> None:
    """Take the cheapest ways over one axis, chain by chain, where they are cheaper than now's."""
    ways = Ways(flow, axis)
    ways.find()
    if not ways.options:
        return
    net = Network.of(ways)
    flowed = cheapest(net.sizes, (*net.as_now(), *net.between))
    least = cheapest(net.sizes, (*net.alone, *net.between))
    nodes = {number: node for node, number in net.numbers.items()}
    for chain in net.chains():
        less = net.total(chain, least) + UNIT <= net.total(chain, flowed)
        chosen = least if less else flowed
        ops = [nodes[variable] for variable in chain if variable in nodes]
        names = frozenset(node.name for node in ops)
        before, after = (net.moved(chain, one) for one in (flowed, chosen))
        flow.graph.info.weighed.append(Weighed(axis, names, before, after))
        for node in ops if less else ():
            take(flow, node, ways.options[node], chosen[net.numbers[node]], axis)


def take(flow: Flow, node: fx.Node, options: list[Option], chosen: int, axis: Axis) -> None:
    """Split an op in one of its ways; `place_reductions` decides anew what passes sums on."""
    sharding = options[chosen].sharding
    if sharding is options[0].sharding:
        return
    sharding.linear.pop(axis, None)
    if axis in sharding.axes():
        sharding.origins[axis] = Origin(Reason.CHEAPEST, node.name, len(options))
    else:
        sharding.origins.pop(axis, None)
    if sharding.rule is sharding_of(node).rule:
        sharding_of(node).factors = sharding.factors
        sharding_of(node).origins = sharding.origins
    else:
        flow._set(node, sharding)
