"""The cheapest way between two layouts over single reshards, with nothing left out of the search.

Every reshard that takes an axis from the end of a dim, adds one there, moves one from dim to dim,
reduces a sum or turns the axes of one dim; no exchange of several dims. Of packed dims none.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator

from shardlang.cost.paths import reshard_cost
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.reshard import Reshard


def cheapest(source: Layout, goal: Layout, axes: tuple[Axis, ...], diff: bool) -> float:
    """The cost of the cheapest chain, as `find_path` counts it."""
    count = itertools.count()
    queue: list[tuple[float, int, Layout]] = [(0.0, next(count), source)]
    done: set[Layout] = set()
    while queue:
        cost, _, layout = heapq.heappop(queue)
        if layout == goal:
            return cost
        if layout in done:
            continue
        done.add(layout)
        for reshard in single(layout, goal, axes):
            if reshard.dst not in done:
                heapq.heappush(
                    queue, (cost + reshard_cost(reshard, diff), next(count), reshard.dst)
                )
    return math.inf


def single(layout: Layout, goal: Layout, axes: tuple[Axis, ...]) -> Iterator[Reshard]:
    """Every single reshard from a layout."""
    for place, dim in enumerate(layout.dims):
        if dim.axes:
            axis = dim.axes[-1]
            bare = layout.replaced(place, _over(dim, dim.axes[:-1]))
            yield Reshard((axis,), layout, bare)
            if axis in goal.partial:
                yield Reshard((axis,), layout, Layout(bare.dims, layout.partial | {axis}))
            for other, end in _ends(bare, axis):
                if other != place:
                    yield Reshard((axis,), layout, end)
        for turned in itertools.permutations(dim.axes):
            if turned != dim.axes:
                yield Reshard(dim.axes, layout, layout.replaced(place, _over(dim, turned)))
    for axis in axes:
        if axis in layout.sharded:
            continue
        bare = Layout(layout.dims, layout.partial - {axis})
        if axis in layout.partial and axis not in goal.partial:
            yield Reshard((axis,), layout, bare)
        if axis not in layout.partial and axis in goal.partial:
            yield Reshard((axis,), layout, Layout(layout.dims, layout.partial | {axis}))
        if axis not in layout.partial or axis not in goal.partial:
            yield from (Reshard((axis,), layout, end) for _, end in _ends(bare, axis))


def _ends(layout: Layout, axis: Axis) -> Iterator[tuple[int, Layout]]:
    """The layout with an axis added at the end of each dim."""
    for place, dim in enumerate(layout.dims):
        yield place, layout.replaced(place, _over(dim, (*dim.axes, axis)))


def _over(dim: DimLayout, axes: tuple[Axis, ...]) -> DimLayout:
    return DimLayout.shard(dim.size, axes)
