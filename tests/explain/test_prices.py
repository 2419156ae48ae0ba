"""The prices of explanations: read off the graph, and those of the compiled ways."""

from __future__ import annotations

import pytest
from torch import fx

from shardlang.explain import explain
from shardlang.explain.alternatives import alternatives, splits, without_axis
from shardlang.ir.graph import sharding_of
from shardlang.ir.text import graph_text
from shardlang.passes.propagate.choose import with_option
from tests.cost.alone import propagated
from tests.cost.compiled import compiled_bytes
from tests.cost.test_splits import UNEVEN
from tests.plan.plans import SP, TP, compiled


def test_the_graph_is_only_read() -> None:
    """The same nodes, shardings and text before and after the ways of every op are priced."""
    _, flow = propagated(UNEVEN)
    graph = flow.graph.graph

    def state() -> tuple[str, list[fx.Node], list[str]]:
        return graph_text(flow.graph), list(graph.nodes), [repr(sharding_of(n)) for n in flow.nodes]

    before, shardings = state(), [sharding_of(node) for node in flow.nodes]
    found = [alternatives(flow, n, axis) for n in flow.nodes for axis in flow.graph.mesh.axes]
    assert sum(map(len, found)) > 50
    assert state() == before
    assert all(sharding_of(n) is old for n, old in zip(flow.nodes, shardings, strict=True))


@pytest.mark.parametrize("name", ["up.weight", "down.out", "down", "x"])
def test_explaining_leaves_the_program_as_it_is(name: str) -> None:
    done = compiled(TP)
    program, text = done.program, done.program.text()
    assert explain(done, name)
    assert done.program is program
    assert done.program.text() == text


@pytest.mark.parametrize("text", [SP, UNEVEN], ids=["even", "uneven"])
def test_the_ways_cost_what_compiling_them_sends(text: str) -> None:
    """All ways of all products; those that are lowered or exchange uneven shares aside."""
    _, flow = propagated(text)
    products = [node for node in flow.nodes if node.name.startswith("linear")]
    for node in products:
        sharding = sharding_of(node)
        for axis in flow.graph.mesh.axes:
            bare = without_axis(sharding, axis)
            made = [
                compiled_bytes(flow, node, with_option(bare, option))
                for _, option in splits(flow, node, sharding, axis)
            ]
            shown = [way.bytes for way in alternatives(flow, node, axis)]
            found = [one for one in made if one is not None]
            assert len(found) > 1
            for one in found:
                assert min(abs(size - one.sent) for size in shown) <= one.slack, one.text
