"""Moves drawn at random: meshes, layouts and reshards of every kind."""

from __future__ import annotations

import random
from collections.abc import Callable

from shardlang.ir.collective import ReduceOp
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.experts.route import Route
from shardlang.ir.factor import Factor
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.reads import Reads, Stretch
from shardlang.ir.reshard import CHANGES, How, Reshard

Axes = tuple[Axis, ...]

MESHES = (
    (2,), (3,), (4,), (2, 2), (2, 3), (3, 2), (4, 2), (1, 2), (2, 1, 2), (5,), (8,),
    (1,), (1, 4), (2, 4), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 3, 2), (3, 2, 2),
)  # fmt: skip

STATES = tuple((before, after) for before, after, how in CHANGES if how is How.STATE)
KINDS = (
    *("".join(pair) for pair in STATES), "all_to_all", "permute", "exchange", "halo", "fold", "max",
    "min",
)  # fmt: skip
"""The reshards: states before and after, or the move's own name."""
ROUTES = ("dispatch", "collect")


def mesh_of(rng: random.Random, devices: int | None = None) -> Mesh:
    """A mesh of up to three axes, of that many devices if given."""
    found = [Mesh(tuple(Axis("abc"[i], n) for i, n in enumerate(sizes))) for sizes in MESHES]
    return rng.choice([mesh for mesh in found if devices in (None, mesh.devices)])


def _divisor(rng: random.Random, size: int) -> int:
    return rng.choice([n for n in range(1, size + 1) if size % n == 0] or [1])


def _plain(rng: random.Random, size: int, major: Axes, minor: Axes) -> DimLayout:
    return DimLayout.shard(size, major + minor)


def _packed(rng: random.Random, size: int, major: Axes, minor: Axes) -> DimLayout:
    blocks = rng.choice([2, 3, (1, 2), (3, 1, 1), (2, 1)])
    total = blocks if isinstance(blocks, int) else sum(blocks)
    return DimLayout.shard(size, major + minor, blocks if size % total == 0 else 1)


def _units(rng: random.Random, size: int, major: Axes, minor: Axes) -> DimLayout:
    return DimLayout.shard(size, major + minor, unit=_divisor(rng, size))


def _flattened(rng: random.Random, size: int, major: Axes, minor: Axes) -> DimLayout:
    count = _divisor(rng, size)
    head = Factor(count, major)
    return DimLayout(((head, Factor(size // count, minor)),))


def _uneven_blocks(rng: random.Random, size: int, major: Axes, minor: Axes) -> DimLayout:
    cut = rng.randint(0, size)
    axes = major + minor
    return DimLayout(((Factor(cut, axes),), (Factor(size - cut, axes),)))


FORMS: tuple[Callable[[random.Random, int, Axes, Axes], DimLayout], ...] = (
    _plain, _packed, _units, _flattened, _uneven_blocks,
)  # fmt: skip


def _size(rng: random.Random) -> int:
    return rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 12, 18, 24])


def held_twice(rng: random.Random, size: int, axes: Axes) -> DimLayout:
    """A dim of which every device holds some indices, and its own part of the others."""
    cut = rng.randint(1, size)
    return DimLayout(((Factor(cut, axes),), (Factor(size - cut),)))


def split_dim(rng: random.Random, size: int, major: Axes, minor: Axes) -> DimLayout:
    """A dim that all the axes split, `minor` below `major`."""
    made = rng.choice(FORMS)(rng, size, major, minor)
    return made if set(made.axes) == {*major, *minor} else DimLayout.shard(size, major + minor)


def _shuffled(rng: random.Random, axes: Axes) -> Axes:
    return tuple(rng.sample(axes, len(axes)))


def reshard_of(rng: random.Random, mesh: Mesh, kind: str) -> Reshard:
    """A reshard of that kind over one or more axes; the others split dims or hold partial sums."""
    axes = _shuffled(rng, tuple(rng.sample(mesh.axes, rng.randint(1, len(mesh.axes)))))
    rest = tuple(axis for axis in mesh.axes if axis not in axes)
    splitting = tuple(axis for axis in rest if rng.random() < 0.6)
    summed = frozenset(axis for axis in rest if axis not in splitting and rng.random() < 0.3)
    count = rng.randint(2 if kind == "all_to_all" else 1, 3)
    places = rng.sample(range(count), 2 if kind == "all_to_all" else 1)
    majors: list[Axes] = [() for _ in range(count)]
    for axis in splitting:
        at = rng.randrange(count)
        majors[at] = (*majors[at], axis)
    sizes = [_size(rng) for _ in range(count)]
    wide = [DimLayout.shard(n, a) for n, a in zip(sizes, majors, strict=True)]
    if count > 1 and rng.random() < 0.04:
        other = next(i for i in range(count) if i not in places or i == places[-1])
        wide[other] = DimLayout.whole(0) if other not in places else wide[other]
    base = Layout(tuple(wide), summed)
    return _MAKERS.get(kind, _by_states)(rng, kind, base, places, axes)


def _by_states(
    rng: random.Random, kind: str, base: Layout, places: list[int], axes: Axes
) -> Reshard:
    if "S" not in kind:
        ends = [marked(base, state, axes) for state in kind]
    else:
        at = places[0]
        narrow = split_dim(rng, base.dims[at].size, base.dims[at].axes, axes)
        wide = base.replaced(at, narrow.without(axes))
        ends = [
            base.replaced(at, narrow) if state == "S" else marked(wide, state, axes)
            for state in kind
        ]
    return Reshard(axes, *ends)


def _all_to_all(
    rng: random.Random, kind: str, base: Layout, places: list[int], axes: Axes
) -> Reshard:
    first, second = places
    one = split_dim(rng, base.dims[first].size, base.dims[first].axes, axes)
    other = split_dim(rng, base.dims[second].size, base.dims[second].axes, _shuffled(rng, axes))
    src = base.replaced(first, one).replaced(second, other.without(axes))
    dst = base.replaced(first, one.without(axes)).replaced(second, other)
    return Reshard(axes, src, dst)


def _permute(rng: random.Random, kind: str, base: Layout, places: list[int], axes: Axes) -> Reshard:
    at = places[0]
    mine = (*base.dims[at].axes, *axes)
    size = base.dims[at].size
    ends = []
    for _ in range(2):
        order = _shuffled(rng, mine) if rng.random() < 0.7 else mine
        cut = rng.randint(0, len(order))
        made = split_dim(rng, size, order[:cut], order[cut:])
        if rng.random() < 0.1:
            made = held_twice(rng, size, order)
        ends.append(base.replaced(at, made))
    return Reshard(mine, *ends)


def _exchange(
    rng: random.Random, kind: str, base: Layout, places: list[int], axes: Axes
) -> Reshard:
    """The axes on any dims, in any order and blocks, before and after."""
    own = tuple(axis for dim in base.dims for axis in dim.axes)
    ends = []
    for _ in range(2):
        placed: list[Axes] = [() for _ in base.dims]
        for axis in _shuffled(rng, (*own, *axes)):
            at = rng.choice([i for i, dim in enumerate(base.dims) if dim.size])
            placed[at] = (*placed[at], axis)
        cuts = [rng.randint(0, len(over)) for over in placed]
        dims = tuple(
            split_dim(rng, dim.size, over[:cut], over[cut:]) if over else DimLayout.whole(dim.size)
            for dim, over, cut in zip(base.dims, placed, cuts, strict=True)
        )
        if rng.random() < 0.1:
            at = rng.choice([i for i, over in enumerate(placed) if over])
            dims = (*dims[:at], held_twice(rng, dims[at].size, placed[at]), *dims[at + 1 :])
        ends.append(Layout(dims, base.partial))
    return Reshard((*own, *axes), *ends)


def _halo(rng: random.Random, kind: str, base: Layout, places: list[int], axes: Axes) -> Reshard:
    """A dim that reads another in any order, the axes on both."""
    at = places[0]
    mine = (*base.dims[at].axes, *axes)
    reads = reads_of(rng, base.dims[at].size)
    src = base.replaced(at, DimLayout.shard(reads.size, mine))
    dst = base.replaced(at, DimLayout.shard(reads.length, mine))
    there = Reshard(mine, src, dst, reads=reads)
    return there if kind == "halo" else there.transposed()


def reads_of(rng: random.Random, size: int) -> Reads:
    """Up to six stretches of a dim, forward, backward, with steps, or of nothing."""
    stretches: list[Stretch] = []
    for _ in range(rng.randint(1, 6)):
        first = rng.randrange(size + 1)
        last = rng.randrange(size + 1)
        step = rng.choice([1, 1, 1, 2, 3])
        way = range(first, last, step) if first < last else range(first - 1, last - 1, -step)
        stretches.append(rng.randint(1, 3) if rng.random() < 0.2 else way)
    return Reads.of(size, stretches if any(map(bool, stretches)) else [2])


def _extreme(rng: random.Random, kind: str, base: Layout, places: list[int], axes: Axes) -> Reshard:
    return Reshard(axes, base, base, ReduceOp(kind))


_MAKERS = {
    "all_to_all": _all_to_all, "permute": _permute, "exchange": _exchange,
    "halo": _halo, "fold": _halo,
    "max": _extreme, "min": _extreme,
}  # fmt: skip


def marked(layout: Layout, state: str, axes: Axes) -> Layout:
    """The layout with the axes in a state that is not `S`."""
    return Layout(
        layout.dims,
        layout.partial | (frozenset(axes) if state == "P" else frozenset()),
        layout.varying | (frozenset(axes) if state == "R" else frozenset()),
    )


def route_of(rng: random.Random, mesh: Mesh, kind: str) -> tuple[Reshard, list[int]]:
    """A dispatch or collect, and the group of every row."""
    over = _shuffled(rng, tuple(rng.sample(mesh.axes, rng.randint(1, len(mesh.axes)))))
    experts = _shuffled(rng, tuple(rng.sample(over, rng.randint(1, len(over)))))
    rows = DimLayout.shard(_size(rng), over)
    count = rng.randint(1, 6)
    axes = tuple(axis for axis in mesh.axes if axis in experts)
    route = Route(axes, rows, DimLayout.shard(count, experts), kind == "collect")
    widths = rng.sample([1, 2, 3, 4], rng.randint(0, 2))
    layout = Layout((rows, *(DimLayout.whole(n) for n in widths)))
    popular = rng.randint(1, count)
    return Reshard(axes, layout, layout, route=route), [
        rng.randrange(popular) for _ in range(rows.size)
    ]
