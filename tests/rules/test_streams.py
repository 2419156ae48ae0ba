"""Random ops whose shards draw apart: rules, streams, and what they leave alone."""

from __future__ import annotations

import random as chance
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from shardlang.ir.device_values import PartNumber
from shardlang.ir.layout import Layout
from shardlang.proof.draws import Parts, parts_of
from shardlang.proof.rules.assignments import assignments
from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.check import Case, program_of
from shardlang.proof.rules.prove import Tally, failures_of, prove_call
from shardlang.rules import random, streams
from shardlang.rules.op_rule import Streams
from shardlang.rules.registry import RULES

aten: Any = torch.ops.aten
MADE = torch.Generator().manual_seed(3)
X = torch.randn(5, 7, generator=MADE, dtype=torch.float64)
IMAGE = torch.randn(5, 7, 3, 2, generator=MADE, dtype=torch.float64)
F64 = {"dtype": torch.float64}

CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (aten.dropout.default, (X, 0.4, True), {}),
    (aten.dropout.default, (X.t(), 0.4, True), {}),
    (aten.dropout.default, (X, 1.0, True), {}),
    (aten.dropout.default, (X, 0.4, False), {}),
    (aten.feature_dropout.default, (IMAGE, 0.4, True), {}),
    (aten.native_dropout.default, (X, 0.4, True), {}),
    (aten.alpha_dropout.default, (X, 0.4, True), {}),
    (aten.feature_alpha_dropout.default, (IMAGE, 0.4, True), {}),
    (aten.rrelu.default, (X, 0.1, 0.3, True), {}),
    (aten.rrelu.default, (X, 0.1, 0.3, False), {}),
    (aten.poisson.default, (X.exp(),), {}),
    (aten.binomial.default, (X.exp().ceil(), X.sigmoid()), {}),
    (aten.multinomial.default, (X.exp(), 3), {}),
    (aten.multinomial.default, (X.exp(), 9, True), {}),
    (aten.rand.default, ([5, 7],), F64),
    (aten.randn.default, ([5, 7],), F64),
    (aten.randint.default, (9, [5, 7]), {}),
    (aten.randint.low, (3, 50, [5, 7]), {}),
    (aten.normal.float_float, (1.0, 2.0, [5, 7]), F64),
    (aten.rand_like.default, (X,), {}),
    (aten.randn_like.default, (X,), {}),
    (aten.randint_like.default, (X, 9), {}),
    (aten.randint_like.low_dtype, (X, 3, 9), {}),
    (aten.bernoulli.p, (X, 0.3), {}),
    (aten.uniform.default, (X, 1.0, 2.0), {}),
    (aten.exponential.default, (X,), {}),
    (aten.cauchy.default, (X,), {}),
    (aten.geometric.default, (X, 0.5), {}),
    (aten.log_normal.default, (X,), {}),
    (aten.random.default, (X,), {}),
    (aten.random.to, (X, 9), {}),
    (getattr(aten.random, "from"), (X, 3, 9), {}),
    (aten.normal_functional.default, (X,), {}),
    (aten.bernoulli.default, (X.sigmoid(),), {}),
    (aten.normal.Tensor_float, (X, 2.0), {}),
    (aten.normal.float_Tensor, (1.0, X.abs()), {}),
    (aten.normal.Tensor_Tensor, (X, X.abs()[:, :1]), {}),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]}")
def test_every_split_equals_its_parts_put_together(
    call: tuple[Any, tuple[Any, ...], dict[str, Any]],
) -> None:
    target, args, kwargs = call
    tally, chooser = Tally(), chance.Random(0)
    found = list(prove_call(str(target), AtenCall(target, args, kwargs), tally, chooser))
    assert [str(failure) for failure in found] == []
    assert tally.assignments > 0


def test_every_op_with_a_fast_mode_is_tried() -> None:
    tried = {str(target) for target, _, _ in CALLS}
    known = {str(op) for op, rule in RULES.items() if rule.fast is not None}
    assert {op for op in known if not op.endswith(".generator")} <= tried


def _fewer(layout: Layout, source: Streams, dims: int | None = None) -> tuple[Any, ...]:
    """A stream for each part along the first axis alone."""
    return (*source.take(), PartNumber(layout.sharded[1:]))


@pytest.mark.parametrize(
    ("target", "args"),
    [(aten.dropout.default, (X, 0.4, True)), (aten.rand_like.default, (X,))],
)
def test_a_wrong_part_is_found(
    target: Any, args: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "_stream", _fewer)
    assert failures_of(target, *args) != []


def test_a_channel_is_dropped_as_a_whole_where_its_rows_are_split() -> None:
    case = Case(AtenCall(aten.feature_dropout.default, (torch.ones(3, 4, 6, 2), 0.5, True), {}))
    rule, tried = case.rule(fast=True), 0
    for assignment in assignments(rule):
        sharding = assignment.sharding(rule)
        if sharding is None or not sharding.result().dims[2].axes:
            continue
        program = program_of(case, assignment, sharding, fast=True)
        (node,) = [node for node in program.graph.nodes if parts_of(node) is not None]
        torch.manual_seed(0)
        drawn = Parts(node, program.mesh)(streams.stream_key(), *case.call.tensors)
        assert drawn.unique().tolist() == [0, 2]
        assert (drawn == drawn[:, :, :1, :1]).all()
        tried += 1
    assert tried > 2


@pytest.mark.parametrize(
    ("plain", "apart", "dims"),
    [
        (aten.dropout.default, streams.dropped_apart, None),
        (aten.feature_dropout.default, streams.dropped_apart, 2),
        (aten.alpha_dropout.default, streams.alpha_dropped_apart, None),
        (aten.feature_alpha_dropout.default, streams.alpha_dropped_apart, 2),
    ],
)
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_a_part_is_dropped_as_the_plain_op_would_with_its_stream(
    plain: Any, apart: Any, dims: int | None, p: float
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(streams.stream_seed(5, 2, 1))
        expected = plain(IMAGE, p, True)
    found = apart(IMAGE, torch.tensor(5), 2, 1, p, dims)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_slopes_of_rrelu_lie_between_its_bounds() -> None:
    x = torch.linspace(-4, 4, 5000, dtype=torch.float64)
    op = streams.on_stream(aten.uniform.default)
    ratio = streams.rrelu_apart(op, x, torch.tensor(5), 2, 1, 0.1, 0.3) / x
    assert (ratio[2500:] == 1).all()
    assert ratio[:2500].min() >= 0.1
    assert ratio[:2500].max() <= 0.3
    assert abs(ratio[:2500].mean() - 0.2) < 5 * (0.2 / 12**0.5) / 50


def test_no_two_parts_of_a_draw_have_one_seed() -> None:
    for key, draw in ((0, 0), (1, 7), (2**62 - 1, 1234)):
        low = {streams.stream_seed(key, draw, part) & (2**32 - 1) for part in range(20_000)}
        assert len(low) == 20_000


def test_seeds_differ_by_key_draw_and_part() -> None:
    seeds = {
        streams.stream_seed(key, draw, part)
        for key in range(20) for draw in range(50) for part in range(20)
    }  # fmt: skip
    assert len(seeds) == 20 * 50 * 20
    assert all(0 <= seed < 2**64 for seed in seeds)


COMPILED: list[tuple[str, Callable[[Tensor, Tensor], Any]]] = [
    ("dropout", lambda x, key: streams.dropped_apart(x, key, 3, 1, 0.3)),
    ("feature dropout", lambda x, key: streams.dropped_apart(x[None], key, 3, 1, 0.3, 2)),
    ("native dropout", lambda x, key: streams.dropped_with_mask_apart(x, key, 3, 1, 0.3)[0]),
    (
        "rand_like",
        lambda x, key: x * streams.drawn_apart(
            streams.on_stream(aten.rand_like.default), key, 3, 1, x
        ),
    ),
    (
        "rand",
        lambda x, key: x * streams.drawn_apart(
            streams.on_stream(aten.rand.default), key, 3, 1, [7], dtype=torch.float64
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize("call", [c for _, c in COMPILED], ids=[name for name, _ in COMPILED])
def test_they_compile_without_graph_breaks(call: Callable[[Tensor, Tensor], Any]) -> None:
    torch._dynamo.reset()
    key = streams.stream_key()
    found = []
    for run in (call, torch.compile(call, backend="aot_eager", fullgraph=True)):
        x = X.clone().requires_grad_()
        y = run(x, key)
        y.sum().backward()
        assert x.grad is not None
        found.append((y.detach(), x.grad))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    key = torch.tensor(5)
    a = streams.dropped_apart(X, key, 0, 0, 0.5)
    with pytest.raises(RuntimeError):
        streams.drawn_apart(streams.on_stream(aten.bernoulli.p), key, 0, 0, X, 2.0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(streams.dropped_apart(X, key, 0, 0, 0.5), a)


def test_a_forward_that_is_run_again_draws_the_same() -> None:
    def work(x: Tensor) -> Tensor:
        return streams.dropped_apart(x, streams.stream_key(), 0, 2, 0.5).sin()

    found = []
    for again in (False, True):
        torch.manual_seed(1)
        x = X.clone().requires_grad_()
        y = checkpoint(work, x, use_reentrant=False) if again else work(x)
        torch.rand(5)
        y.sum().backward()
        assert x.grad is not None
        found.append((y.detach(), x.grad))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_a_key_takes_one_number() -> None:
    torch.manual_seed(11)
    keys = [int(streams.stream_key()) for _ in range(3)]
    torch.manual_seed(11)
    assert [int(torch.randint(1 << 62, ())) for _ in range(3)] == keys
    assert len(set(keys)) == 3


def test_a_compiler_finds_an_op_in_which_the_key_is_drawn() -> None:
    """It draws random numbers of its own in the place of aten's."""
    traced = make_fx(lambda x: x + streams.stream_key())(torch.tensor(0))
    called = [n.target for n in traced.graph.nodes if n.op == "call_function"]
    assert called == [torch.ops.shardlang.stream_key.default, aten.add.Tensor]


def test_the_mask_is_the_same_in_every_dtype() -> None:
    key = torch.tensor(9)
    kept = [
        streams.dropped_apart(torch.ones(50, 8, dtype=dtype), key, 0, 0, 0.3) != 0
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    ]
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])


def test_parts_and_draws_are_uncorrelated_and_keep_the_right_fraction() -> None:
    """Bounds of five standard deviations: a wrong one in about 2 million."""
    p, count = 0.1, 1 << 18
    key = torch.tensor(2026)
    masks = torch.stack([
        streams.dropped_apart(torch.ones(count, dtype=torch.float64), key, draw, part, p) != 0
        for draw in range(3) for part in range(4)
    ]).double()  # fmt: skip
    off = (masks.mean(1) - (1 - p)).abs()
    assert off.max() < 5 * (p * (1 - p) / count) ** 0.5
    pairs = torch.corrcoef(masks) - torch.eye(12)
    assert pairs.abs().max() < 5 / count**0.5
