"""The table of changes: each is reached, each adjoint is one, and nothing else is accepted."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from shardlang.cost.ring import sent_bytes
from shardlang.ir.collective import Kind
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.reshard import CHANGES, How, NoChange, Reshard, Row, gradient_kind
from shardlang.ir.state import State
from tests.moves import draw, meaning
from tests.moves.cases import case
from tests.moves.derivative import check_derivative
from tests.moves.rows import WHOLE, A, example

B, C = Axis("b", 2), Axis("c", 3)
EACH = 12
EXTREMES = ("max", "min")
LINEAR = [kind for kind in draw.KINDS if kind not in EXTREMES]


@pytest.mark.parametrize("key", CHANGES, ids=" ".join)
def test_every_row_is_reached(key: tuple[State, State, How]) -> None:
    made = example(*key)
    assert (made.kind, made.forward.kind) == CHANGES[key]
    assert made.forward.axes == (() if made.forward.kind is Kind.NOTHING else made.axes)
    assert (made.forward.src, made.forward.dst) == (made.src, made.dst)


def test_other_states_are_refused() -> None:
    for key in itertools.product(State, State, (How.STATE, How.MAX, How.MIN, How.DISPATCH)):
        reordered = set(key[:2]) == {State.SHARDED} and key[2] is How.STATE
        meant = (*key[:2], How.ORDER) if reordered else key
        if meant not in CHANGES:
            with pytest.raises(NoChange, match=f"from {key[0]} to {key[1]} over `a`"):
                example(*key)


def test_axes_that_ask_for_two_collectives_are_refused() -> None:
    summed, whole = Layout((WHOLE,), frozenset((A,))), Layout((WHOLE,))
    split = Layout((DimLayout.shard(6, (B,)),))
    with pytest.raises(NoChange, match="over a, b is not one collective"):
        Reshard((A, B), Layout(split.dims, summed.partial), whole)
    with pytest.raises(NoChange, match="is not one collective"):
        Reshard(
            (A, B), Layout((DimLayout.shard(6, (A, B)),)), Layout((WHOLE,), varying=frozenset((A,)))
        )


@pytest.mark.parametrize("kind", [*LINEAR, *draw.ROUTES])
def test_the_adjoint_of_the_adjoint_is_the_forward(kind: str) -> None:
    for made in drawn(kind):
        back = made.transposed()
        assert (back.forward, back.adjoint) == (made.adjoint, made.forward)
        assert back.transposed() == made


def test_the_kind_of_a_gradient_is_that_of_the_adjoint() -> None:
    for before, after, how in CHANGES:
        if how is How.STATE:
            assert gradient_kind(before, after) is example(before, after, how).adjoint.kind


@pytest.mark.parametrize("kind", EXTREMES)
def test_a_maximum_has_no_gradient(kind: str) -> None:
    for made in drawn(kind):
        assert made.adjoint.kind is Kind.ZERO
        assert not made.differentiable
        assert not made.adjoint.sends
        with pytest.raises(NoChange, match="has no gradient"):
            made.transposed()


@pytest.mark.parametrize("kind", LINEAR)
def test_the_adjoint_is_the_derivative(kind: str) -> None:
    for number, made in enumerate(drawn(kind)):
        check_derivative(made, mesh_of(number))


@pytest.mark.parametrize("key", [key for key in CHANGES if key[2] is How.STATE], ids=" ".join)
def test_a_wrong_row_is_found(
    key: tuple[State, State, How], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = CHANGES[key].kind
    wrong = Kind.NOTHING if kind is Kind.FIRST else Kind.FIRST
    check_derivative(example(*key), Mesh((A,)))
    monkeypatch.setitem(CHANGES, key, Row("wrong", wrong))
    with pytest.raises(AssertionError):
        check_derivative(example(*key), Mesh((A,)))


def drawn(kind: str) -> Iterator[Reshard]:
    """Reshards of a kind on the meshes of `mesh_of`."""
    for number in range(EACH):
        rng = random.Random(f"{kind} {number}")
        if kind in draw.ROUTES:
            yield draw.route_of(rng, mesh_of(number), kind)[0]
        else:
            yield draw.reshard_of(rng, mesh_of(number), kind)


def mesh_of(number: int) -> Mesh:
    """A mesh of one to three axes."""
    return draw.mesh_of(random.Random(number))


JOINT = [
    pytest.param(before, after, id=f"{before} to {after}")
    for before, after in [
        ("PP", "IR"), ("PP", "RI"), ("II", "RR"), ("PP", "RR"), ("RR", "IP"), ("PI", "IR"),
        ("PI", "RR"), ("RI", "PP"), ("RI", "IP"),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), JOINT)
def test_joint_over_axes_of_other_states(before: str, after: str) -> None:
    """The adjoint acts along those of the axes alone that ask for it."""
    mesh = Mesh((A, C, B))
    split = Layout((DimLayout.shard(5, (B,)), DimLayout.whole(3)))
    made = Reshard((A, C), *(
        draw.marked(draw.marked(split, states[0], (A,)), states[1], (C,))
        for states in (before, after)
    ))  # fmt: skip
    check_derivative(made, mesh)
    assert made.transposed().forward == made.adjoint
    assert made.transposed().transposed() == made


def test_a_joint_all_reduce_goes_back_over_the_replicated_axes() -> None:
    summed = Layout((WHOLE,), frozenset((A, C)))
    for replicated in [(), (A,), (C,), (A, C)]:
        back = Reshard((A, C), summed, Layout((WHOLE,), varying=frozenset(replicated))).adjoint
        assert back.axes == replicated
        assert back.kind is (Kind.ALL_REDUCE if replicated else Kind.NOTHING)
        assert sent_bytes(back, 4) == 2 * 24 * (back.members - 1) // back.members


@pytest.mark.parametrize("kind", draw.ROUTES)
def test_the_adjoint_of_a_route_brings_its_rows_back(kind: str) -> None:
    start = draw.ROUTES.index(kind) + len(draw.KINDS)
    for number in range(start, 400, len(draw.KINDS) + len(draw.ROUTES) + 1):
        drawn_case = case(number)
        one = drawn_case.ones[0]
        assert one.by is not None
        xs = [torch.randn(x.shape, dtype=torch.float64, requires_grad=True) for x in one.xs]
        ys = meaning.carried(one.reshard.forward, one.by, xs, drawn_case.mesh)
        seeds = [torch.randn(y.shape, dtype=torch.float64) for y in ys]
        back = meaning.carried(one.reshard.adjoint, one.by, seeds, drawn_case.mesh)
        pairs = zip(ys, seeds, strict=True)
        product = sum(((y * seed).sum() for y, seed in pairs), xs[0].sum() * 0)
        assert isinstance(product, Tensor)
        grads = torch.autograd.grad(product, xs, materialize_grads=True)
        torch.testing.assert_close(list(grads), back, rtol=1e-12, atol=1e-12)
        for at, y in zip(drawn_case.mesh.coords(), ys, strict=True):
            rows = y.shape[0] if kind == "collect" else None
            assert one.reshard.forward.local_shape(at) == (rows, *y.shape[1:])
