"""The values of an fx graph as a networkx graph, and what is reached on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import networkx as nx
from torch import fx


def values(graph: fx.Graph) -> nx.DiGraph:
    """The nodes, with an edge from each to every node that reads it."""
    net = nx.DiGraph()
    net.add_nodes_from(graph.nodes)
    net.add_edges_from((read, node) for node in graph.nodes for read in node.all_input_nodes)
    return net


def sources(
    graph: fx.Graph, starts: Iterable[fx.Node], through: Callable[[fx.Node], bool]
) -> set[fx.Node]:
    """What some nodes are computed from, they included, by nodes that a way may lead through."""
    net = nx.reverse_view(nx.subgraph_view(values(graph), filter_node=through))
    layers = nx.bfs_layers(net, [node for node in starts if through(node)])
    return {node for layer in layers for node in layer}
