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


def reached(
    net: nx.DiGraph, starts: Iterable[fx.Node], through: Callable[[fx.Node], bool]
) -> set[fx.Node]:
    """What lies behind some nodes, they included, on ways that lead through certain nodes alone."""
    layers = nx.bfs_layers(
        nx.subgraph_view(net, filter_node=through), [node for node in starts if through(node)]
    )
    return {node for layer in layers for node in layer}


def sources(
    graph: fx.Graph, starts: Iterable[fx.Node], through: Callable[[fx.Node], bool]
) -> set[fx.Node]:
    """What some nodes are computed from, they included, by nodes that a way may lead through."""
    return reached(nx.reverse_view(values(graph)), starts, through)
