"""What is reached on the values of a graph."""

from __future__ import annotations

from torch import fx

from shardlang.ir.values import reached, sources, values


def diamond() -> dict[str, fx.Node]:
    """Two ways from `x` to `total`, and one op beside them."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = {name: graph.call_function(abs, (x,), name=name) for name in ("left", "right", "beside")}
    total = graph.call_function(max, (made["left"], made["right"]), name="total")
    return {"x": x, **made, "total": total}


def test_an_edge_leads_to_every_reader() -> None:
    nodes = diamond()
    edges = {(start.name, end.name) for start, end in values(nodes["x"].graph).edges}
    ways = {("left", "total"), ("right", "total")}
    assert edges == ways | {("x", "left"), ("x", "right"), ("x", "beside")}


def test_sources_go_through_what_is_allowed() -> None:
    nodes = diamond()
    graph, start = nodes["x"].graph, [nodes["total"]]

    def names(*closed: str) -> set[str]:
        return {one.name for one in sources(graph, start, lambda n: n.name not in closed)}

    assert names() == {"total", "left", "right", "x"}
    assert names("left") == {"total", "right", "x"}
    assert names("left", "right") == {"total"}
    assert names("total") == set()


def test_what_lies_behind_nodes_is_reached_through_what_is_allowed() -> None:
    nodes = diamond()
    net = values(nodes["x"].graph)

    def names(*closed: str) -> set[str]:
        return {one.name for one in reached(net, [nodes["x"]], lambda n: n.name not in closed)}

    assert names() == {"x", "left", "right", "beside", "total"}
    assert names("left", "right") == {"x", "beside"}
    assert names("x") == set()
