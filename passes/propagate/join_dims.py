"""Build the dimension graph of a graph whose ops have their rules."""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx
from torch import fx

from shardlang.ir.dims import Dim, DimGraph, Joint, Meeting, OpFactor, Use, meetings
from shardlang.ir.graph import is_item, producer, sharding_of
from shardlang.ir.node import info
from shardlang.ir.rule import Rule
from shardlang.rules.call import Call

Edge = tuple[Dim, OpFactor] | tuple[OpFactor, Dim]


def join_dims(graph: fx.Graph) -> DimGraph:
    """The dimension graph.

    Ops of one rule share its joints, so the graph costs little more than its edges.
    """
    dims = DimGraph()
    for node in graph.nodes:
        if info(node).sharding is not None:
            dims.operands[node] = operands_of(node)
    of_rule: dict[int, list[Meeting]] = {}
    for node, operands in dims.operands.items():
        dims.uses[node] = list(_uses_of(node, dims.operands))
        rule = sharding_of(node).rule
        if id(rule) not in of_rule:
            of_rule[id(rule)] = meetings(rule)
        _join(dims.net, node, [producer(value) for value in operands], of_rule[id(rule)])
    return dims


def rejoin(dims: DimGraph, node: fx.Node, before: Rule) -> None:
    """Join the dims of an op whose rule was another one before."""
    dims.net.remove_nodes_from([OpFactor(node, name) for name, _ in before.sizes])
    sources = [producer(value) for value in dims.operands[node]]
    _join(dims.net, node, sources, meetings(sharding_of(node).rule))


def _join(
    net: nx.DiGraph, node: fx.Node, sources: list[tuple[fx.Node, int]], found: list[Meeting]
) -> None:
    """Add the factors of one op, and the edges between them and the dims of its values."""
    edges: dict[Edge, tuple[Joint, ...]] = {}
    for name, result, dim, joints in found:
        slot, factor = joints[0].slot, OpFactor(node, name)
        read = None if slot is None else Dim(*sources[slot], dim)
        edge = (factor, Dim(node, result, dim)) if read is None else (read, factor)
        edges[edge] = (*edges[edge], *joints) if edge in edges else joints
    net.add_edges_from((start, end, {"joints": joints}) for (start, end), joints in edges.items())


def operands_of(node: fx.Node) -> list[fx.Node]:
    """Tensor operands, slot by slot."""
    if node.op == "placeholder":
        return []
    return Call(node).operands


def _uses_of(node: fx.Node, operands: dict[fx.Node, list[fx.Node]]) -> Iterator[Use]:
    """Every use of a node's results, in the order of its users."""
    for user in node.users:
        value, readers = (user, list(user.users)) if is_item(user) else (node, [user])
        _, index = producer(value)
        for reader in readers:
            slots = operands.get(reader, [])
            yield from (Use(reader, i, index) for i, source in enumerate(slots) if source is value)
