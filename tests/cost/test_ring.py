"""The bytes of a call against what the messages of all devices come to, around a ring."""

from __future__ import annotations

import pytest
import torch

from shardlang.cost.reshards import expected_bytes
from shardlang.cost.ring import EXCHANGES, ring_bytes, ring_limit, sent_bytes
from shardlang.ir.collective import Collective, Kind
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.experts.route import Route
from shardlang.ir.experts.row_exchange import router_at
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.reshard import Reshard
from shardlang.runtime.lockstep import sites
from shardlang.runtime.routes import Carry
from tests.cost.sent import busiest, busiest_in
from tests.moves.cases import One, case
from tests.moves.draw import KINDS

EACH = 40
"""Drawn reshards of every kind."""


def drawn() -> list[tuple[Mesh, One]]:
    """Drawn reshards of every kind on meshes of up to three axes, uneven ones among them."""
    cases = [case(number) for number in range(EACH * len(KINDS))]
    return [(found.mesh, one) for found in cases if found.kind in KINDS for one in found.ones]


def sent_and_priced() -> list[tuple[Reshard, Kind, int, int, int]]:
    """Of each direction of each drawn reshard: the move, bytes sent, bytes priced, an element."""
    found = []
    for mesh, one in drawn():
        size = one.xs[0].element_size()
        forward = busiest_in(one.reshard.forward, mesh, one.xs)
        priced = sent_bytes(one.reshard.forward, size)
        found.append((one.reshard, one.reshard.forward.kind, forward, priced, size))
        if one.grads is not None:
            backward = busiest_in(one.reshard.adjoint, mesh, one.grads)
            priced = sent_bytes(one.reshard.adjoint, size)
            found.append((one.reshard, one.reshard.adjoint.kind, backward, priced, size))
    return found


def test_the_price_of_a_step_is_what_its_moves_send() -> None:
    """To the byte, uneven shards included; of a reduction that does not divide, to two elements."""
    seen = set()
    for reshard, move, sent, priced, size in sent_and_priced():
        seen.add(move)
        slack = 2 * size if move is Kind.ALL_REDUCE else 0
        assert 0 <= sent - priced <= slack, reshard
    moves = {Kind.ALL_REDUCE, Kind.ALL_GATHER, Kind.REDUCE_SCATTER, *EXCHANGES}
    moves |= {Kind.HALO, Kind.FOLD}
    assert moves | {Kind.SLICE, Kind.PAD, Kind.FIRST, Kind.NOTHING} == seen


A, B = Axis("a", 2), Axis("b", 3)
BOTH = Mesh((A, B))


def sent_by(reshard: Reshard) -> tuple[int, int]:
    """Bytes that the busiest device sends in float32, forward and backward."""
    xs, grads = (
        [torch.zeros(layout.local_shape(at)) for at in BOTH.coords()]
        for layout in (reshard.src, reshard.dst)
    )
    back = busiest_in(reshard.adjoint, BOTH, grads)
    return busiest_in(reshard.forward, BOTH, xs), back


def layout(*axes: tuple[Axis, ...], partial: tuple[Axis, ...] = ()) -> Layout:
    """A tensor of 13 by 8 by 18, split so."""
    dims = zip((13, 8, 18), axes, strict=True)
    return Layout(tuple(DimLayout.shard(n, over) for n, over in dims), frozenset(partial))


@pytest.mark.parametrize(
    ("reshard", "forward", "backward"),
    [
        # 13 rows over 3 are 5, 4, 4: two shards of 5 x 4 x 18
        (Reshard((B,), layout((B,), (A,), ()), layout((), (A,), ())), 2 * 5 * 4 * 18, 0),
        # a gather over one axis of two: the shards of the other are 7 rows, cut into 3, 2, 2
        (Reshard((B,), layout((A, B), (), ()), layout((A,), (), ())), 2 * 3 * 8 * 18, 0),
        # a scatter sends as much as its gather
        (
            Reshard((B,), layout((), (A,), (), partial=(B,)), layout((B,), (A,), ())),
            2 * 5 * 4 * 18,
            2 * 5 * 4 * 18,
        ),
        # a dim that moves: all but one's own third of 13 x 4 x 6
        (
            Reshard((A,), layout((), (A,), (B,)), layout((), (), (B, A))),
            13 * 4 * 6 // 2,
            13 * 8 * 3 // 2,
        ),
        # a sum over both axes: 2 * 5 / 6 of all
        (Reshard((A, B), layout((), (), (), partial=(A, B)), layout((), (), ())), 3120, 0),
    ],
    ids=str,
)
def test_steps_by_hand(reshard: Reshard, forward: int, backward: int) -> None:
    assert sent_by(reshard) == (4 * forward, 4 * backward)
    assert (sent_bytes(reshard.forward, 4), sent_bytes(reshard.adjoint, 4)) == sent_by(reshard)


@pytest.mark.parametrize("inverse", [False, True])
def test_a_route_is_priced_as_equal_shares(inverse: bool) -> None:
    """Rows of 5 elements, as many for each device's experts: two thirds travel."""
    mesh = Mesh((B,))
    rows = DimLayout.shard(27, (B,))
    route = Route((B,), rows, DimLayout.shard(6, (B,)), inverse)
    lying = Layout((rows, DimLayout.whole(5)))
    reshard = Reshard((B,), lying, lying, route=route)
    groups = torch.arange(27) % 6
    groups[-3:] = torch.tensor([0, 2, 4])
    moves, xs = [], []
    for site in sites(mesh):
        exchange = router_at(route.at(site.coord), site.device).exchange(groups)
        moves.append(Carry(site.of((B,)), "", exchange, inverse, (5,)))
        count = sum(exchange.received) if inverse else sum(exchange.sent)
        xs.append(torch.zeros(count, 5))
    assert sent_bytes(reshard.forward, 4) == sent_bytes(reshard.adjoint, 4) == 9 * 5 * 4 * 2 // 3
    assert busiest(moves, xs) == sent_bytes(reshard.forward, 4)


def test_a_gradient_is_expected_before_labels_are_known() -> None:
    gather = Reshard((B,), layout((B,), (), ()), layout((), (), ()))
    once = sent_bytes(gather.forward, 4)
    assert expected_bytes(gather, 4, diff=False) == once
    assert expected_bytes(gather, 4, diff=True) == 2 * once
    cut = Reshard((B,), layout((), (), ()), layout((B,), (), ()))
    assert (expected_bytes(cut, 4, diff=False), expected_bytes(cut, 4, diff=True)) == (0, once / 2)
    reduce = Reshard((B,), layout((), (), (), partial=(B,)), layout((), (), ()))
    assert expected_bytes(reduce, 4, diff=True) == sent_bytes(reduce.forward, 4)


@pytest.mark.parametrize("move", Kind)
def test_the_limit_is_that_of_many_devices(move: Kind) -> None:
    few, many = (ring_bytes(move, 10**6, members) for members in (2, 10**6))
    assert few <= many <= ring_limit(move, 10**6)
    assert ring_limit(move, 10**6) - many <= 2
    assert ring_bytes(move, 10**6, 1) == 0


def test_one_device_sends_nothing() -> None:
    one, whole = Axis("one", 1), layout((), (), ())
    assert not Collective(Kind.ALL_GATHER, (one,), layout((one,), (), ()), whole).sends
    assert Collective(Kind.ALL_GATHER, (one, A), layout((one, A), (), ()), whole).sends
    assert not Collective(Kind.SLICE, (A,), whole, layout((A,), (), ())).sends
