"""The cheapest sequence of reshards from one layout to another.

A search over layouts (Dijkstra, 1959): every edge is one reshard of the table, its weight the bytes
that the busiest device sends forward and backward. Only axes that the goal asks for are ever
added, so the space stays small.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from shardlang.cost.reshards import expected_bytes
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.factor import Factor
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.reshard import Change, Reshard

Path = tuple[Reshard, ...]

_RESHARD = 1e-3
"""What a reshard counts beside its bytes, in elements."""


class NoPath(ValueError):
    """No sequence of reshards leads from one layout to the other."""


def minor_in(dim: DimLayout, axis: Axis) -> bool:
    """Whether `axis` is the minor-most axis of every factor that it splits."""
    found = [f.axes for block in dim.blocks for f in block if axis in f.axes]
    return bool(found) and all(axes[-1] == axis for axes in found)


def reshard_cost(reshard: Reshard, diff: bool) -> float:
    """The weight of one reshard: its bytes for elements of one byte; of equal ways the shortest."""
    return expected_bytes(reshard, 1, diff) + _RESHARD


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
    current = layout.dims[place]
    wanted = goal.dims[place].only((*current.axes, axis))
    if wanted.without([axis]) == current and minor_in(wanted, axis):
        yield layout.replaced(place, wanted)


def _unmarked(layout: Layout, axis: Axis) -> Layout:
    return Layout(layout.dims, layout.partial - {axis})


def _below(dim: DimLayout, axes: Iterable[Axis]) -> DimLayout | None:
    """The dim with axes added below those that split it; None where a block is not split."""
    more = tuple(axes)
    if dim.order is not None:
        return None
    if not more:
        return dim
    if dim.plain:
        return DimLayout.shard(dim.size, (*dim.axes, *more))
    lasts = [max((i for i, f in enumerate(b) if f.axes), default=None) for b in dim.blocks]
    if None in lasts:
        return None
    blocks = (
        tuple(Factor(f.size, (*f.axes, *more)) if i == last else f for i, f in enumerate(block))
        for block, last in zip(dim.blocks, lasts, strict=True)
    )
    return DimLayout(tuple(blocks))


def _sunk(layout: Layout, goal: Layout, axis: Axis) -> Iterator[Layout]:
    """`axis` below what splits its dim now, where the goal has it above: an exchange puts it there.

    What is exchanged then is a shard of all the axes, and never the whole dim.
    """
    place = goal.dim_of(axis)
    if place is None:
        return
    dim = layout.dims[place]
    below = _below(dim, (axis,)) if dim.axes else None
    if below is not None and below.without([axis]) == dim:
        yield layout.replaced(place, below)


def _scattered(layout: Layout, goal: Layout, axis: Axis) -> Iterator[Layout]:
    """A sum that the goal has whole, in shards while the rest moves: it is gathered at the end."""
    if goal.dim_of(axis) is not None or layout.dims == goal.dims:
        return
    for place, dim in enumerate(layout.dims):
        below = _below(dim, (axis,))
        if below is not None and below.without([axis]) == dim:
            yield layout.replaced(place, below)


def _exchanges(layout: Layout, goal: Layout) -> Iterator[Reshard]:
    """All axes where the goal has them, those that it has not below others or where they are.

    One dim at a time too, where its axes only stand in another order or in other blocks.
    """
    if any(dim.order is not None for dim in layout.dims):
        return
    mine = layout.sharded
    leaving = [axis for axis in mine if axis not in goal.sharded]
    settled = [dim.only(mine) for dim in goal.dims]
    targets = {place: _below(dim, leaving) for place, dim in enumerate(settled)}
    staying = [
        _below(dim, [axis for axis in had.axes if axis in leaving])
        for dim, had in zip(settled, layout.dims, strict=True)
    ]
    for place, dim in targets.items():
        if dim is not None:
            yield from _exchange(layout, _with(settled, place, dim))
    yield from _exchange(layout, staying)
    for place, dim in enumerate(settled):
        if set(dim.axes) == set(layout.dims[place].axes):
            yield from _exchange(layout, _with(layout.dims, place, dim))


def _with(dims: Sequence[DimLayout], place: int, dim: DimLayout) -> list[DimLayout]:
    return [*dims[:place], dim, *dims[place + 1 :]]


def _exchange(layout: Layout, dims: Sequence[DimLayout | None]) -> Iterator[Reshard]:
    """The exchange to other dims over the same axes, over those axes that it moves."""
    found = [dim for dim in dims if dim is not None]
    if len(found) < len(dims):
        return
    target = Layout(tuple(found), layout.partial, layout.varying)
    axes = moving_axes(layout, target)
    if axes and set(target.sharded) == set(layout.sharded):
        yield Reshard(axes, layout, target)


def moving_axes(src: Layout, dst: Layout) -> tuple[Axis, ...]:
    """The axes along which an exchange moves data: not those that a dim begins with twice."""
    found: dict[Axis, None] = {}
    for one, other in zip(src.dims, dst.dims, strict=True):
        if one != other:
            same = _common(one.axes, other.axes) if one.plain and other.plain else 0
            found.update(dict.fromkeys((*one.axes[same:], *other.axes[same:])))
    return tuple(found)


def _common(one: Sequence[Axis], other: Sequence[Axis]) -> int:
    """How many axes both begin with."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def neighbours(layout: Layout, goal: Layout) -> Iterator[Reshard]:
    """All single reshards from a layout that can be part of a way to the goal."""
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
        for added in (*_additions(bare, goal, axis), *_sunk(bare, goal, axis)):
            yield Reshard((axis,), layout, added)
        for added in _scattered(bare, goal, axis):
            yield Reshard((axis,), layout, added)
    taken = set(layout.sharded) | layout.partial
    for axis in (*goal.sharded, *sorted(goal.partial)):
        if axis in taken:
            continue
        for added in (*_additions(layout, goal, axis), *_sunk(layout, goal, axis)):
            yield Reshard((axis,), layout, added)
        if axis in goal.partial:
            yield Reshard((axis,), layout, Layout(layout.dims, layout.partial | {axis}))
    yield from _exchanges(layout, goal)


@functools.lru_cache(maxsize=65536)
def find_path(sources: tuple[Layout, ...], goal: Layout, diff: bool) -> tuple[int, Path, float]:
    """The cheapest path to `goal` from any of `sources`.

    Returns:
        Index of the source, the reshards, and their cost.

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
        for reshard in neighbours(layout, goal):
            if reshard.dst not in done:
                total = cost + reshard_cost(reshard, diff)
                heapq.heappush(queue, (total, next(order), reshard.dst, index, (*path, reshard)))
    raise NoPath(f"no reshards lead from {sources[0]} to {goal}")


def merge_reductions(path: Path) -> Path:
    """Neighbouring all-reduces over several axes become one."""
    merged: list[Reshard] = []
    for reshard in path:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.kind is reshard.kind is Change.ALL_REDUCE
            and last.reduce is reshard.reduce
        ):
            axes = tuple(sorted({*last.axes, *reshard.axes}))
            merged[-1] = Reshard(axes, last.src, reshard.dst, reshard.reduce)
        else:
            merged.append(reshard)
    return tuple(merged)


def widest_between(path: Path) -> Layout | None:
    """The layout on the way of which a device holds most, if that is more than at both ends."""
    if len(path) < 2:
        return None
    widest = max((reshard.dst for reshard in path[:-1]), key=Layout.held)
    return widest if widest.held() > max(path[0].src.held(), path[-1].dst.held()) else None


def path_bytes(path: Path, itemsize: int, diff: bool) -> float:
    """Bytes that the busiest device sends in all reshards of a path: their `expected_bytes`."""
    return sum(expected_bytes(reshard, itemsize, diff) for reshard in path)


@functools.lru_cache(maxsize=65536)
def reshard_bytes(source: Layout, goal: Layout, itemsize: int, diff: bool) -> float:
    """Bytes of the cheapest way between two layouts, infinite where there is none.

    Each reshard counts a thousandth of an element more: of equal ways the shortest is taken.

    Args:
        itemsize: bytes of one element.
        diff: whether a gradient flows back.
    """
    try:
        path = find_path((source,), goal, diff)[1]
    except NoPath:
        return math.inf
    return path_bytes(path, itemsize, diff) + _RESHARD * itemsize * len(path)
