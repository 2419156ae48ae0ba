"""What holds once nothing is computed twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import fx

from shardlang.ir.node import info
from shardlang.passes.invariants.invariant import View, invariant
from shardlang.rules.same import Numbers, is_pure


@invariant
def nothing_twice(view: View) -> Iterator[str]:
    """No two calls split alike compute the same, unless their gradients flow in other ways."""
    for same in Numbers.of_graph(view.graph.graph).same.values():
        for one, other in itertools.pairwise(same):
            if one.all_input_nodes == other.all_input_nodes or not (_flows(one) and _flows(other)):
                yield f"{other} computes what {one} does"


def _flows(node: fx.Node) -> bool:
    return info(node).differentiable


@invariant
def everything_read(view: View) -> Iterator[str]:
    """Every call that always gives the same is read."""
    for node in view.ops:
        if is_pure(node) and not node.users:
            yield f"nothing reads {node}"
