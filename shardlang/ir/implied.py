"""What a graph's text need not say: what follows from a node's call and its printed type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.graph import read_by
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.node import info
from shardlang.ir.rule import Rule, Sharding

Linear = dict[Axis, frozenset[int]]


def implied_factors(rule: Rule, results: Sequence[Layout]) -> dict[str, DimLayout]:
    """The layouts of an op's factors, read off the layouts of its results alone."""
    whole = Sharding.whole(rule)
    found = dict(whole.factors)
    for index, layout in enumerate(results):
        found.update(whole.read_result(index, layout))
    return found


def implied_linear(sharding: Sharding, results: Sequence[Layout]) -> Linear:
    """Which partial sums an op passes on, if it is linear in one set of operands only."""
    sets = set(sharding.rule.linear)
    if len(sets) != 1:
        return {}
    partial = {axis for layout in results for axis in layout.partial}
    return dict.fromkeys(sorted(partial - sharding.inner_axes()), sets.pop())


def implied_gradient(node: fx.Node, value: object, sharding: Sharding | None) -> bool:
    """Whether a gradient flows through an op as it flows into it."""
    results = value if isinstance(value, (list, tuple)) else [value]
    floating = any(
        isinstance(one, torch.Tensor) and (one.is_floating_point() or one.is_complex())
        for one in results
    )
    detached = sharding is not None and sharding.rule.detached
    return floating and not detached and any(info(n).differentiable for n in read_by(node))
