"""The cheapest way between two layouts: tried out, counted, and against all other ways."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from shardlang.cost.paths import (
    find_path,
    merge_reductions,
    neighbours,
    path_bytes,
    reshard_bytes,
    reshard_cost,
)
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.shards import shard_of
from shardlang.runtime.lockstep import lowered, move_all
from tests.cost.sent import busiest_in

A, B = Axis("a", 2), Axis("b", 3)
MESH = Mesh((A, B))


def layouts(shape: tuple[int, ...]) -> list[Layout]:
    """Every way to lay a matrix out: each axis whole, summed or on a dim, in either order."""
    found = set()
    for order in ((A, B), (B, A)):
        for places in itertools.product((None, "sum", 0, 1), repeat=2):
            at = dict(zip(order, places, strict=True))
            dims = tuple(
                DimLayout.shard(size, tuple(axis for axis in order if at[axis] == dim))
                for dim, size in enumerate(shape)
            )
            found.add(Layout(dims, frozenset(axis for axis in order if at[axis] == "sum")))
    return sorted(found, key=str)


def pairs(shape: tuple[int, ...], count: int) -> list[tuple[Layout, Layout]]:
    """Some pairs of different layouts, the same each time."""
    every = [pair for pair in itertools.product(layouts(shape), repeat=2) if pair[0] != pair[1]]
    return random.Random(0).sample(every, count)


def shards(full: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
    """The shards of all devices; of a sum, the first summand is all of it."""
    found = []
    for at in MESH.coords():
        shard = shard_of(full, layout, at)
        found.append(shard if all(at[a.name] == 0 for a in layout.partial) else 0 * shard)
    return found


def added_up(xs: list[torch.Tensor], layout: Layout) -> list[torch.Tensor]:
    """The sum on every device of its own shard and those of the others of its sum."""
    coords = list(MESH.coords())
    fixed = [axis.name for axis in MESH.axes if axis not in layout.partial]
    return [
        sum(
            (
                x
                for x, other in zip(xs, coords, strict=True)
                if all(at[n] == other[n] for n in fixed)
            ),
            torch.zeros(()),
        )
        for at in coords
    ]


@pytest.mark.parametrize("shape", [(12, 18), (7, 10)], ids=["even", "uneven"])
def test_the_steps_lead_to_the_goal_and_send_what_they_cost(shape: tuple[int, ...]) -> None:
    """The values of all devices, and the bytes of the messages of each step."""
    full = torch.arange(1.0, 1 + math.prod(shape)).reshape(shape)
    for source, goal in pairs(shape, 120):
        path = find_path((source,), goal, False)[1]
        xs, sent = shards(full, source), 0
        for reshard in path:
            sent += busiest_in(reshard.forward, MESH, xs)
            xs = move_all(lowered(reshard.forward, MESH), xs)
        wanted = [shard_of(full, goal, at) for at in MESH.coords()]
        for x, want in zip(added_up(xs, goal), wanted, strict=True):
            assert torch.equal(x, want), (source, goal)
        slack = 8 * sum(reshard.kind == "all_reduce" for reshard in path)
        assert 0 <= sent - path_bytes(path, 4, False) <= slack, (source, goal)


def cheapest(source: Layout, goal: Layout, diff: bool, depth: int) -> float:
    """The weight of the cheapest of all ways of up to `depth` reshards."""
    if source == goal:
        return 0.0
    if depth == 0:
        return math.inf
    return min(
        (
            reshard_cost(reshard, diff) + cheapest(reshard.dst, goal, diff, depth - 1)
            for reshard in neighbours(source, goal)
        ),
        default=math.inf,
    )


@pytest.mark.parametrize("diff", [False, True])
def test_no_other_way_is_cheaper(diff: bool) -> None:
    for source, goal in pairs((7, 10), 60):
        _, path, cost = find_path((source,), goal, diff)
        tried = cheapest(source, goal, diff, 4)
        assert cost <= tried + 1e-9, (source, goal)
        if len(path) <= 3:
            assert cost == pytest.approx(tried), (source, goal)


def test_a_reshard_costs_its_steps_merged() -> None:
    """Two sums are reduced in one call: 2 * 5 / 6 of the matrix, not 2 * (1 / 2 + 2 / 3)."""
    whole = Layout.whole((12, 18))
    summed = Layout(whole.dims, frozenset((A, B)))
    _, path, cost = find_path((summed,), whole, False)
    assert [reshard.axes for reshard in path] == [(A, B)]
    assert path == merge_reductions(path)
    assert path_bytes(path, 4, False) == 12 * 18 * 4 * 2 * 5 // 6
    assert round(reshard_bytes(summed, whole, 4, False)) == path_bytes(path, 4, False) < 4 * cost


def test_nothing_costs_nothing_and_no_way_is_infinite() -> None:
    same = Layout.whole((12, 18))
    assert path_bytes((), 4, True) == reshard_bytes(same, same, 4, True) == 0
    labelled = Layout(same.dims, varying=frozenset((A,)))
    assert reshard_bytes(same, labelled, 4, False) == math.inf
