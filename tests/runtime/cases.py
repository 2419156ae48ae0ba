"""Reshards to try on real process groups, with inputs; the same on every rank and in the oracle.

All numbers are small integers in float64, so sums are exact and results compare bit by bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Coord, Mesh
from shardlang.ir.reshard import Reshard
from shardlang.ir.shards import peers, shard_of

A4 = Axis("a", 4)
A, B = Axis("a", 2), Axis("b", 2)
LINE2 = Mesh((A,))
LINE4 = Mesh((A4,))
GRID = Mesh((A, B))
LIMIT_S = 47.0
"""How long calls wait, unlike any default of PyTorch's."""

Dim = tuple[int, tuple[Axis, ...]] | tuple[int, tuple[Axis, ...], int | tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    """One reshard on one mesh."""

    mesh: Mesh
    reshard: Reshard
    name: str

    def __str__(self) -> str:
        return self.name


def lay(*dims: Dim, partial: tuple[Axis, ...] = (), varying: tuple[Axis, ...] = ()) -> Layout:
    """A layout from `(size, axes, blocks)` per dim."""
    made = tuple(DimLayout.shard(*dim) for dim in dims)
    return Layout(made, frozenset(partial), frozenset(varying))


def marked(layout: Layout, state: str, axes: tuple[Axis, ...]) -> Layout:
    """The layout with the axes in a state that is not `S`."""
    return Layout(
        layout.dims,
        layout.partial | (frozenset(axes) if state == "P" else frozenset()),
        layout.varying | (frozenset(axes) if state == "R" else frozenset()),
    )


def _whole_reshards(mesh: Mesh, axes: tuple[Axis, ...]) -> Iterator[Case]:
    """Reshards that leave the dims alone."""
    for shape in ((4, 3), (), (0, 3)):
        base = lay(*((n, ()) for n in shape))
        for before, after in ("PI", "PR", "IR", "RI", "IP", "RP"):
            reshard = Reshard(axes, marked(base, before, axes), marked(base, after, axes))
            yield Case(mesh, reshard, f"{mesh}: {reshard}")


_SPLITS: list[tuple[tuple[int, ...], int, int | tuple[int, ...]]] = [
    ((8, 3), 0, 1), ((3, 8), 1, 1), ((1, 8, 2), 1, 1), ((7, 3), 0, 1), ((3, 9), 1, 1),
    ((2, 3), 0, 1), ((24, 2), 0, 3), ((2, 21), 1, 3), ((2, 20), 1, (3, 1, 1)), ((128, 2), 0, 16),
]  # fmt: skip


def _cut_reshards(mesh: Mesh, axis: Axis) -> Iterator[Case]:
    """Reshards between a split dim and a whole one."""
    for shape, dim, blocks in _SPLITS:
        whole = lay(*((n, ()) for n in shape))
        cut = whole.replaced(dim, DimLayout.shard(shape[dim], (axis,), blocks))
        for state in "RIP":
            other = marked(whole, state, (axis,))
            gather = Reshard((axis,), cut, other)
            yield Case(mesh, gather, f"{mesh}: {gather}")
            back = Reshard((axis,), other, cut)
            yield Case(mesh, back, f"{mesh}: {back}")


def _product_reshards() -> Iterator[Case]:
    """Reshards on the minor axis of a product, next to other split dims."""
    for size in (8, 7, 9):
        inner = lay((size, (A, B)), (3, ()))
        outer = lay((size, (A,)), (3, ()))
        for state in "RIP":
            other = marked(outer, state, (B,))
            for src, dst in ((inner, other), (other, inner)):
                reshard = Reshard((B,), src, dst)
                yield Case(GRID, reshard, f"{GRID}: {reshard}")
    beside = Reshard((B,), lay((5, (A,)), (7, (B,))), lay((5, (A,)), (7, ()), varying=(B,)))
    yield Case(GRID, beside, f"{GRID}: {beside}")
    mixed = lay((5, (A,)), (7, ()), partial=(B,))
    over_b = Reshard((B,), mixed, lay((5, (A,)), (7, ())))
    yield Case(GRID, over_b, f"{GRID}: {over_b}")
    both = Reshard((A, B), lay((4, ()), partial=(A, B)), lay((4, ()), varying=(B,)))
    yield Case(GRID, both, f"{GRID}: {both}")


def _exchanges() -> Iterator[Case]:
    pairs = [
        (LINE4, (A4,), (8, 12)), (LINE4, (A4,), (7, 5)), (LINE4, (A4,), (3, 9)),
        (LINE2, (A,), (4, 6)), (LINE2, (A,), (5, 3)), (LINE2, (A,), (1, 3)),
    ]  # fmt: skip
    for mesh, axes, (m, n) in pairs:
        for swap in (False, True):
            src, dst = lay((m, axes), (2, ()), (n, ())), lay((m, ()), (2, ()), (n, axes))
            reshard = Reshard(axes, dst, src) if swap else Reshard(axes, src, dst)
            yield Case(mesh, reshard, f"{mesh}: {reshard}")
    blocks = Reshard((A,), lay((12, (A,), 3), (5, ())), lay((12, ()), (5, (A,))))
    yield Case(LINE2, blocks, f"{LINE2}: {blocks}")
    inner = Reshard((B,), lay((8, (A, B)), (6, ())), lay((8, (A,)), (6, (B,))))
    yield Case(GRID, inner, f"{GRID}: {inner}")
    for size in (8, 10):
        swapped = Reshard((A, B), lay((3, ()), (size, (A, B))), lay((3, ()), (size, (B, A))))
        yield Case(GRID, swapped, f"{GRID}: {swapped}")


def cases(devices: int) -> list[Case]:
    """Every case for a number of processes."""
    if devices == 2:
        found = [*_whole_reshards(LINE2, (A,)), *_cut_reshards(LINE2, A)]
    else:
        found = [*_whole_reshards(LINE4, (A4,)), *_cut_reshards(LINE4, A4), *_product_reshards()]
        found += list(_whole_reshards(GRID, (A, B)))
    return found + [case for case in _exchanges() if case.mesh.devices == devices]


def whole(layout: Layout, seed: int) -> Tensor:
    """A global value."""
    made = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, layout.shape, generator=made).double()


def summand(full: Tensor, axes: tuple[Axis, ...], coord: Coord, seed: int) -> Tensor:
    """This device's summand of `full` over some axes: the last device has what the others lack."""
    last = all(coord[axis.name] == axis.size - 1 for axis in axes)
    made = torch.Generator()
    rest = full.clone()
    for i, at in enumerate(peers(dict.fromkeys(coord, 0), axes)):
        share = torch.randint(-8, 9, full.shape, generator=made.manual_seed(seed + i)).double()
        final = all(at[axis.name] == axis.size - 1 for axis in axes)
        if not final:
            rest -= share
        if not last and all(at[axis.name] == coord[axis.name] for axis in axes):
            return share
    return rest


def local_value(layout: Layout, coord: Coord, seed: int, dual: bool = False) -> Tensor:
    """What one device holds of a value, or of a gradient (`dual`) of a value of that layout."""
    summed = tuple(sorted(layout.varying if dual else layout.partial))
    return shard_of(summand(whole(layout, seed), summed, coord, seed + 100), layout, coord)


def check(layout: Layout, mesh: Mesh, found: list[Tensor], seed: int, dual: bool = False) -> None:
    """Assert that the devices together hold the value (or gradient) of that layout."""
    summed = tuple(sorted(layout.varying if dual else layout.partial))
    full = whole(layout, seed)
    for coord in mesh.coords():
        total = sum(found[mesh.device(at)] for at in peers(coord, summed))
        assert torch.equal(total, shard_of(full, layout, coord)), f"wrong at {coord}"


def strided(x: Tensor) -> Tensor:
    """The same value in memory of another order."""
    if x.dim() < 2:
        return x.clone()
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def buckets(devices: int) -> list[tuple[Mesh, list[Reshard]]]:
    """Reshards of one kind and group, to be sent together."""
    by_kind: dict[tuple[str, str, tuple[Axis, ...]], list[Case]] = {}
    for case in cases(devices):
        key = (str(case.mesh), "".join(case.reshard.states), case.reshard.axes)
        by_kind.setdefault(key, []).append(case)
    return [
        (found[0].mesh, [case.reshard for case in itertools.islice(found, 6)])
        for found in by_kind.values()
        if len(found) > 1
    ]
