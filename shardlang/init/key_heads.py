"""A model axis in two parts, for models with fewer key and value heads than devices.

Over `tp = 4`, two key heads cannot be split between heads. Over `tp = kv*g` with `kv = 2` and
`g = 2` they can: `g` devices hold each of them, and split the query heads that read it.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from math import gcd

from shardlang.init.axes import Roles
from shardlang.init.chains import Dims
from shardlang.init.choose import all_chains, sites_of
from shardlang.init.layouts import HEADS, Entry, Layouts
from shardlang.ir.dims import Dim
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.node import tensor_of

Pair = tuple[str, int]
"""A parameter and one of its dims."""


def in_two_parts(dims: Dims, roles: Roles, plain: Layouts) -> tuple[Roles, Layouts] | None:
    """The layouts with key and value heads over a part of the model axis; None without such heads.

    Args:
        plain: layouts over the whole axis.
    """
    assert roles.model is not None
    size = roles.model.size
    few = _few_heads(dims, size)
    for count in sorted({gcd(heads, size) for heads in few.values()} - {1}, reverse=True):
        parts = _parts(roles, count)
        found = _beside_queries(dims, parts[0], few, plain)
        if found:
            return _divided(roles, parts), _over(found, parts[0], few, plain)
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


def _parts(roles: Roles, count: int) -> tuple[Axis, Axis]:
    assert roles.model is not None
    taken = {axis.name for axis in roles.mesh.axes}
    names = [name if name not in taken else f"{roles.model.name}_{name}" for name in ("kv", "g")]
    return Axis(names[0], count), Axis(names[1], roles.model.size // count)


def _divided(roles: Roles, parts: tuple[Axis, Axis]) -> Roles:
    """The roles on a mesh with two axes in the place of the model axis."""
    axes: list[Axis] = []
    for axis in roles.mesh.axes:
        axes += parts if axis == roles.model else (axis,)
    return replace(roles, mesh=Mesh(tuple(axes)), parts=parts)


def _over(pairs: list[Pair], axis: Axis, few: Container[Pair], plain: Layouts) -> Layouts:
    changed = {name: {dim: Entry((axis.name,))} for name, dim in pairs if (name, dim) in few}
    titles = dict.fromkeys((name for name, _ in pairs), HEADS)
    return replace(plain, entries={**plain.entries, **changed}, titles={**plain.titles, **titles})
