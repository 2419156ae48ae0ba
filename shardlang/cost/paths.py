"""The cheapest sequence of steps from one layout to another.

A search over layouts (Dijkstra, 1959): every edge is one step of the table, its weight the bytes
that the busiest device sends forward and backward. Only axes that the goal asks for are ever
added, so the space stays small.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Iterator

from shardlang.cost.steps import expected_bytes
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.reshard import Change, Reshard

Path = tuple[Reshard, ...]

_STEP = 1e-3
"""What a step counts beside its bytes, in elements."""


class NoPath(ValueError):
    """No sequence of steps leads from one layout to the other."""


def minor_in(dim: DimLayout, axis: Axis) -> bool:
    """Whether `axis` is the minor-most axis of every factor that it splits."""
    found = [f.axes for block in dim.blocks for f in block if axis in f.axes]
    return bool(found) and all(axes[-1] == axis for axes in found)


def step_cost(step: Reshard, diff: bool) -> float:
    """The weight of one step: its bytes for elements of one byte; of equal ways the shortest."""
    return expected_bytes(step, 1, diff) + _STEP


def _removals(layout: Layout) -> Iterator[tuple[Axis, Layout]]:
    """Every layout with one minor-most axis gathered."""
    for place, dim in enumerate(layout.dims):
        for axis in dim.axes if dim.order is None else ():
            if minor_in(dim, axis):
                yield axis, layout.replaced(place, dim.without([axis]))


def _additions(layout: Layout, goal: Layout, axis: Axis) -> Iterator[Layout]:
    """Layouts with `axis` put where the goal has it, if what is there now is major to it."""
    place = goal.dim_of(axis)
    if place is None or layout.dims[place].order is not None:
        return
    here = layout.dims[place]
    wanted = goal.dims[place].only((*here.axes, axis))
    if wanted.without([axis]) == here and minor_in(wanted, axis):
        yield layout.replaced(place, wanted)


def _unmarked(layout: Layout, axis: Axis) -> Layout:
    return Layout(layout.dims, layout.partial - {axis})


def _permutations(layout: Layout, goal: Layout) -> Iterator[Reshard]:
    """A dim whose axes stand in another order, where all shards have one size."""
    for place, (dim, want) in enumerate(zip(layout.dims, goal.dims, strict=True)):
        target = want.only(dim.axes)
        axes = dim.axes
        if dim.order is not None or dim == target:
            continue
        if set(target.axes) == set(axes) and dim.even and target.even:
            yield Reshard(axes, layout, layout.replaced(place, target))


def _exchanges(layout: Layout, goal: Layout) -> Iterator[Reshard]:
    """Towards other axes on one dim: the new ones below the old, then the old ones below the new.

    What is then gathered over the old axes is a shard of the new ones, and never the whole dim.
    """
    taken = set(layout.sharded) | layout.partial
    for place, (dim, want) in enumerate(zip(layout.dims, goal.dims, strict=True)):
        leaving = [axis for axis in dim.axes if axis not in want.axes]
        if not (dim.axes and want.axes and dim.plain and want.plain) or dim.order is not None:
            continue
        for axis in want.axes:
            below = DimLayout.shard(dim.size, (*dim.axes, axis)) if axis not in taken else dim
            if below != dim and below.even:
                yield Reshard((axis,), layout, layout.replaced(place, below))
        turned = (*(axis for axis in want.axes if axis in dim.axes), *leaving)
        if turned != dim.axes and dim.even:
            yield Reshard(
                dim.axes, layout, layout.replaced(place, DimLayout.shard(dim.size, turned))
            )


def neighbours(layout: Layout, goal: Layout) -> Iterator[Reshard]:
    """All single steps from a layout that can be part of a way to the goal."""
    for axis, gathered in _removals(layout):
        yield Reshard((axis,), layout, gathered)
        for moved in _additions(gathered, goal, axis):
            if goal.dim_of(axis) != layout.dim_of(axis):
                yield Reshard((axis,), layout, moved)
        if axis in goal.partial:
            yield Reshard((axis,), layout, Layout(gathered.dims, layout.partial | {axis}))
    for axis in sorted(layout.partial - goal.partial):
        bare = _unmarked(layout, axis)
        yield Reshard((axis,), layout, bare)
        for added in _additions(bare, goal, axis):
            yield Reshard((axis,), layout, added)
    taken = set(layout.sharded) | layout.partial
    for axis in (*goal.sharded, *sorted(goal.partial)):
        if axis in taken:
            continue
        for added in _additions(layout, goal, axis):
            yield Reshard((axis,), layout, added)
        if axis in goal.partial:
            yield Reshard((axis,), layout, Layout(layout.dims, layout.partial | {axis}))
    yield from _permutations(layout, goal)
    yield from _exchanges(layout, goal)


@functools.lru_cache(maxsize=65536)
def find_path(sources: tuple[Layout, ...], goal: Layout, diff: bool) -> tuple[int, Path, float]:
    """The cheapest path to `goal` from any of `sources`.

    Returns:
        Index of the source, the steps, and their cost.

    Raises:
        NoPath: there is none.
    """
    order = itertools.count()
    queue: list[tuple[float, int, Layout, int, Path]] = []
    for index, source in enumerate(sources):
        if source.orders != goal.orders:
            continue
        heapq.heappush(queue, (0.0, next(order), source, index, ()))
    done: set[Layout] = set()
    while queue:
        cost, _, layout, index, path = heapq.heappop(queue)
        if layout == goal:
            return index, merge_reductions(path), cost
        if layout in done:
            continue
        done.add(layout)
        for step in neighbours(layout, goal):
            if step.dst not in done:
                total = cost + step_cost(step, diff)
                heapq.heappush(queue, (total, next(order), step.dst, index, (*path, step)))
    raise NoPath(f"no steps lead from {sources[0]} to {goal}")


def merge_reductions(path: Path) -> Path:
    """Neighbouring all-reduces over several axes become one."""
    merged: list[Reshard] = []
    for step in path:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.kind is step.kind is Change.ALL_REDUCE
            and last.reduce is step.reduce
        ):
            axes = tuple(sorted({*last.axes, *step.axes}))
            merged[-1] = Reshard(axes, last.src, step.dst, step.reduce)
        else:
            merged.append(step)
    return tuple(merged)


def widest_between(path: Path) -> Layout | None:
    """The layout on the way of which a device holds most, if that is more than at both ends."""
    if len(path) < 2:
        return None
    widest = max((step.dst for step in path[:-1]), key=Layout.held)
    return widest if widest.held() > max(path[0].src.held(), path[-1].dst.held()) else None


def path_bytes(path: Path, itemsize: int, diff: bool) -> float:
    """Bytes that the busiest device sends in all steps of a path: their `expected_bytes`."""
    return sum(expected_bytes(step, itemsize, diff) for step in path)


@functools.lru_cache(maxsize=65536)
def reshard_bytes(source: Layout, goal: Layout, itemsize: int, diff: bool) -> float:
    """Bytes of the cheapest way between two layouts, infinite where there is none.

    Each step counts a thousandth of an element more, so that of equal ways the shortest is taken.

    Args:
        itemsize: bytes of one element.
        diff: whether a gradient flows back.
    """
    try:
        path = find_path((source,), goal, diff)[1]
    except NoPath:
        return math.inf
    return path_bytes(path, itemsize, diff) + _STEP * itemsize * len(path)
