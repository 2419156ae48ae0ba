"""Fewer key and value heads than devices: the compiler uses the model axis in part for them.

Over `tp = 4`, two key heads cannot be split between heads. Over `tp:2` they can: two devices hold
each of them, and split the query heads that read it. So they may be stated over `tp` beside the
query heads, if their number and the size of the axis have a factor in common.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from math import gcd

from shardlang.init.chains import Dims
from shardlang.init.choose import all_chains, sites_of
from shardlang.init.layouts import HEADS, Entry, Layouts
from shardlang.ir.dims import Dim
from shardlang.ir.mesh import Axis
from shardlang.ir.node import tensor_of

Pair = tuple[str, int]
"""A parameter and one of its dims."""


def with_key_heads(dims: Dims, axis: Axis, plain: Layouts) -> Layouts | None:
    """The layouts with key and value heads split too; None without such heads.

    Args:
        axis: the model axis.
        plain: the layouts of all else.
    """
    few = _few_heads(dims, axis.size)
    for count in sorted({gcd(heads, axis.size) for heads in few.values()} - {1}, reverse=True):
        found = _beside_queries(dims, axis.cut(1, count), few, plain)
        if found:
            return _over(found, axis, few, plain)
    return None


def _few_heads(dims: Dims, devices: int) -> dict[Pair, int]:
    """How many heads a dim of a parameter has, of those with fewer than devices."""
    found: dict[Pair, int] = {}
    for node, leaf in dims.params.items():
        for dim, size in enumerate(tensor_of(node).shape):
            unit = dims.unit(Dim(node, 0, dim))
            if unit > 1 and size % unit == 0 and 1 < size // unit < devices:
                found[leaf.name, dim] = size // unit
    return found


def _beside_queries(dims: Dims, axis: Axis, few: dict[Pair, int], plain: Layouts) -> list[Pair]:
    """The dims of chains that join few heads with others, which the layouts split."""
    found: dict[Pair, None] = {}
    for chain in all_chains(dims, sites_of(dims), axis):
        others = chain.params.keys() - few.keys()
        stated = any(dim in plain.entries.get(name, {}) for name, dim in others)
        if stated and len(others) < len(chain.params):
            found |= dict.fromkeys(chain.params)
    return list(found)


def _over(pairs: list[Pair], axis: Axis, few: Container[Pair], plain: Layouts) -> Layouts:
    changed = {name: {dim: Entry((axis.name,))} for name, dim in pairs if (name, dim) in few}
    titles = dict.fromkeys((name for name, _ in pairs), HEADS)
    return replace(plain, entries={**plain.entries, **changed}, titles={**plain.titles, **titles})
