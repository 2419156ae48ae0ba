"""What any program must send for a change: closed forms, and below every price of ours."""

from __future__ import annotations

import random

import pytest

from shardlang.cost.bound import least_bytes
from shardlang.cost.paths import NoPath, find_path
from shardlang.cost.ring import EXCHANGES, sent_bytes
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.reshard import Reshard
from tests.moves.draw import KINDS, mesh_of, reshard_of

A, B, C = Axis("a", 2), Axis("b", 3), Axis("c", 4)


def lay(*dims: tuple[int, tuple[Axis, ...]], over: tuple[Axis, ...] = ()) -> Layout:
    """Dims as sizes and axes; `over` are the axes of a partial sum."""
    return Layout(tuple(DimLayout.shard(size, axes) for size, axes in dims), frozenset(over))


CASES = {
    "a gather": (lay((24, (C,))), lay((24, ())), 24 * 3 // 4),
    "a scatter": (lay((24, ()), over=(C,)), lay((24, (C,))), 24 * 3 // 4),
    "a sum made whole": (lay((24, ()), over=(C,)), lay((24, ())), 2 * 24 * 3 // 4),
    "a sum over two axes": (lay((24, ()), over=(A, C)), lay((24, ())), 2 * 24 * 7 // 8),
    "what is beside counts as one shard": (
        lay((24, (A,)), (5, ()), over=(C,)), lay((24, (A,)), (5, ())), 2 * 60 * 3 // 4,
    ),
    "a slice": (lay((24, ())), lay((24, (C,))), 0),
    "a dim traded for another": (lay((24, (C,)), (8, ())), lay((24, ()), (8, (C,))), 48 * 3 // 4),
    # each of 30 rows goes to 3 devices; 4 devices send them
    "an uneven gather": (lay((30, (C,))), lay((30, ())), 90 // 4),
    # of 6 pieces the first and the last stay, all others leave their device whole
    "the busiest of unlike devices": (lay((12, (A, B))), lay((12, (B, A))), 2),
    # from a sum over a in shards of c: 1 of 2 summands of 6, and nothing that the other axis has
    "both at once": (lay((24, (C,)), over=(A,)), lay((24, (C, A))), 6 // 2),
    # two devices along c share what each must get
    "a gather into a sum": (lay((24, (A,))), lay((24, ()), over=(C,)), 12 // 4),
    "a change of its summands alone": (lay((24, (C,))), lay((24, ()), over=(C,)), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_closed_forms(name: str) -> None:
    """Elements, by hand."""
    src, dst, elements = CASES[name]
    assert least_bytes(src, dst, 4) // 4 == elements


def moves() -> list[Reshard]:
    """A thousand reshards of every kind, even and uneven, packed and in several axes."""
    rng = random.Random(5)
    kinds = [kind for kind in KINDS if kind not in ("halo", "fold", "max", "min")]
    return [reshard_of(rng, mesh_of(rng), rng.choice(kinds)) for _ in range(1000)]


def test_no_reshard_is_priced_below_its_bound_and_exchanges_are_at_it() -> None:
    met = 0
    for reshard in moves():
        for one in (reshard.forward, reshard.adjoint):
            bound, sent = least_bytes(one.src, one.dst, 4), sent_bytes(one, 4)
            once = all(dim.held_once for layout in (one.src, one.dst) for dim in layout.dims)
            assert bound <= sent, one
            assert bound == sent or one.kind not in EXCHANGES or not once, one
            met += one.kind in EXCHANGES and once and sent > 0
    assert met > 200


def drawn(rng: random.Random, shape: list[int]) -> Layout:
    """A layout of any kind: each axis on a dim, in a sum or nowhere."""
    places: list[list[Axis]] = [[] for _ in shape]
    over = []
    for axis in rng.sample((A, B, C), 3):
        where = rng.choice([None, "sum", *range(len(shape))])
        if where == "sum":
            over.append(axis)
        elif isinstance(where, int):
            places[where].append(axis)
    dims = ((size, tuple(axes)) for size, axes in zip(shape, places, strict=True))
    return lay(*dims, over=tuple(over))


def test_no_chain_of_reshards_is_priced_below_its_bound() -> None:
    """A thousand pairs of layouts, even and uneven."""
    rng, found = random.Random(6), 0
    while found < 1000:
        shape = rng.choices([24, 48, 12, 7, 10, 5], k=rng.randint(1, 2))
        src, dst = drawn(rng, shape), drawn(rng, shape)
        try:
            path = find_path((src,), dst, False)[1]
        except NoPath:
            continue
        assert least_bytes(src, dst, 4) <= sum(sent_bytes(r.forward, 4) for r in path), (src, dst)
        found += 1
