"""normalize: from what export traces to purely functional operators."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from shardlang.passes.normalize.drop_checks import drop_checks
from shardlang.passes.normalize.expand_vmaps import expand_vmaps
from shardlang.passes.normalize.expose_groups import expose_groups
from shardlang.passes.normalize.expose_randomness import expose_randomness
from shardlang.passes.normalize.functionalize import functionalize
from shardlang.passes.normalize.inline_regions import inline_regions
from shardlang.passes.normalize.keep_draw_order import draw_orders, keep_draw_order
from shardlang.passes.normalize.plain_draws import plain_draws
from shardlang.passes.normalize.simplify import simplify


@dataclass(frozen=True, slots=True)
class Normalized:
    """A normalized graph.

    Attributes:
        final: placeholder to final value, for each one that the program writes.
        checks: the model's lines of checks on data that were dropped.
    """

    graph: fx.Graph
    final: dict[fx.Node, fx.Node]
    checks: list[str]


@dataclass(frozen=True, slots=True)
class Normalize:
    """Make a traced program flat and functional, and its operators few.

    Inlines regions, writes vmaps out, makes writes functional, exposes hidden randomness and
    groups, and simplifies.

    Reads `value`, `module` and `source` of every node's record, and of placeholders `leaf`. The
    result's output node keeps its operands; `run` also returns the final value of every placeholder
    that the program writes.

    Invariants of the result:
    - no submodules, no operator that writes an operand, no runtime checks;
    - random operators draw in the order in which they do in the model;
    - values that must not carry a gradient come from `aten.detach`.
    """

    name: str = "normalize"

    def run(self, traced: fx.GraphModule) -> Normalized:
        """The normalized graph, and what it no longer shows."""
        graph = inline_regions(traced)
        checks = drop_checks(graph)
        expand_vmaps(graph)
        plain_draws(graph)
        final = functionalize(graph)
        _keep(graph, final)
        expose_randomness(graph)
        expose_groups(graph)
        orders = draw_orders(graph)
        simplify(graph)
        keep_draw_order(graph, orders)
        final = _release(graph, final)
        graph.lint()
        return Normalized(graph, final, checks)


def _keep(graph: fx.Graph, final: dict[fx.Node, fx.Node]) -> None:
    """Return the final values after the outputs, so that simplification keeps them."""
    output = graph.output_node()
    results = output.args[0]
    assert isinstance(results, (tuple, list))
    output.args = ((*results, *final.values()),)


def _release(graph: fx.Graph, final: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Take the final values out of the output node again."""
    output = graph.output_node()
    results = output.args[0]
    assert isinstance(results, (tuple, list))
    split = len(results) - len(final)
    output.args = (tuple(results[:split]),)
    return dict(zip(final, results[split:], strict=True))
