"""Reshards between drawn layouts: never more bytes than must be sent, or than any other chain.

Of chains that use the axes of the two layouts: a sum over one axis could also be split over an idle
one first, and be gathered from there after.
"""

from __future__ import annotations

import random

import pytest

from shardlang.cost.exchanged import exchanged
from shardlang.cost.paths import find_path, path_bytes, reshard_cost, widest_between
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from tests.cost.unpruned import cheapest

MESHES = ((8,), (2, 4), (8, 8), (4, 2), (2, 2, 2), (4, 4, 4), (2, 3), (3, 2, 2))
Axes = tuple[Axis, ...]


def drawn(rng: random.Random, even: bool) -> tuple[Axes, list[Layout]]:
    """A mesh and two layouts of one tensor on it, of any state along each axis."""
    sizes = rng.choice([m for m in MESHES if not even or 3 not in m])
    axes = tuple(Axis("abc"[i], n) for i, n in enumerate(sizes))
    shape = [512 if even else rng.randint(64, 90) for _ in range(rng.randint(1, 3))]
    return axes, [_layout(rng, axes, shape, sums) for sums in (True, False)]


def _layout(rng: random.Random, axes: Axes, shape: list[int], sums: bool) -> Layout:
    over: list[Axes] = [() for _ in shape]
    partial = set()
    for axis in rng.sample(axes, len(axes)):
        state = rng.random()
        if state < 0.75:
            place = rng.randrange(len(shape))
            over[place] = (*over[place], axis)
        elif sums and state < 0.85:
            partial.add(axis)
    dims = zip(shape, over, strict=True)
    return Layout(tuple(DimLayout.shard(n, a) for n, a in dims), frozenset(partial))


def pairs(count: int, even: bool) -> list[tuple[Axes, Layout, Layout]]:
    rng = random.Random(count + even)
    found = (drawn(rng, even) for _ in range(10 * count))
    return [(axes, src, dst) for axes, (src, dst) in found if src != dst][:count]


@pytest.mark.parametrize("diff", [False, True])
def test_no_chain_of_single_reshards_is_cheaper(diff: bool) -> None:
    for axes, src, dst in pairs(60, even=True):
        _, path, _ = find_path((src,), dst, diff)
        cost = sum(reshard_cost(reshard, diff) for reshard in path)
        named = {*src.sharded, *src.partial, *dst.sharded}
        used = tuple(axis for axis in axes if axis in named)
        assert cost <= cheapest(src, dst, used, diff) + 1e-2, (src, dst)


@pytest.mark.parametrize("even", [True, False])
def test_an_exchange_sends_what_moves_and_no_more(even: bool) -> None:
    """Where the same axes split both ends, one exchange is enough, and nothing is gathered."""
    tried = 0
    for _, src, dst in pairs(500, even):
        if set(src.sharded) == set(dst.sharded) and src.partial == dst.partial:
            _, path, _ = find_path((src,), dst, False)
            assert path_bytes(path, 1, False) <= exchanged(src, dst), (src, dst)
            tried += 1
    assert tried > 100


@pytest.mark.parametrize("even", [True, False])
def test_nothing_is_gathered_in_full(even: bool) -> None:
    """Devices hold no more on the way than at both ends, but for shares that do not divide."""
    for _, src, dst in pairs(200, even):
        _, path, _ = find_path((src,), dst, True)
        widest = widest_between(path)
        ends = max(src.held(), dst.held())
        assert widest is None or (not even and widest.held() < 1.1 * ends), (src, dst)
