"""The proof can fail: every altered rule is caught by it, and the unaltered one passes."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from shardlang.ir.collective import ReduceOp
from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.own import below, mask, numbers
from shardlang.proof.rules.prove import Failure, Tally, prove_call
from shardlang.rules.op_rule import OpRule
from shardlang.rules.reduce import lower_mean
from shardlang.rules.registry import RULES
from tests.broad import sampled

aten: Any = torch.ops.aten
Change = Callable[[OpRule], OpRule]


def spec(text: str) -> Change:
    """Another rule string."""
    return lambda rule: dataclasses.replace(rule, spec=text)


def without(mark: str) -> Change:
    """The rule string without a mark."""

    def change(rule: OpRule) -> OpRule:
        made = rule.spec
        if isinstance(made, str):
            return dataclasses.replace(rule, spec=made.replace(mark, ""))
        return dataclasses.replace(rule, spec=lambda call: made(call).replace(mark, ""))

    return change


def other(**fields: Any) -> Change:
    """Other options."""
    return lambda rule: dataclasses.replace(rule, **fields)


X, SQUARE = numbers(5, 7), numbers(6, 6)
IDS = below(11, 4, 5)
HEADS = (numbers(2, 4, 7, 4), numbers(2, 4, 5, 4), numbers(2, 4, 5, 3))
TARGET = below(11, 9)
TARGET[:4] = -100
LINEAR = (numbers(5, 7), numbers(8, 7), numbers(8))
ADDMM = (numbers(8), numbers(5, 7), numbers(7, 8))

MUTATIONS: list[tuple[str, Any, tuple[Any, ...], Change]] = [
    ("bias not marked", aten.linear.default, LINEAR, spec("b... i, o i, o? -> b... o")),
    ("bias left out", aten.linear.default, LINEAR, other(linear=["input"])),
    ("bilinear as linear", aten.linear.default, LINEAR, other(linear=["input weight bias"])),
    (
        "maximum of products", aten.mm.default, (SQUARE, X.new_ones(6, 5)),
        other(reduce=ReduceOp.MAX),
    ),
    ("factor swapped", aten.mm.default, (SQUARE, SQUARE + 1), spec("m k, n k -> m n")),
    ("outer transposed", aten.outer.default, (SQUARE[0], SQUARE[1]), spec("m, n -> n m")),
    ("sum term by term", aten.add.Tensor, (X, X * 2), other(linear=["self", "other"])),
    ("product at once", aten.mul.Tensor, (X, X * 2), other(linear=["self other"])),
    ("denominator", aten.div.Tensor, (X, X * 2), other(linear=["self", "other"])),
    ("maximum of sums", aten.sum.dim_IntList, (X, [1]), other(reduce=ReduceOp.MAX)),
    ("mean of shards", aten.mean.dim, (X, [1]), without("~")),
    ("softmax of shards", aten.softmax.int, (X, 1), without("~")),
    ("log_softmax of shards", aten.log_softmax.int, (X, 1), without("~")),
    ("layer_norm of shards", aten.layer_norm.default, (X, [7]), without("~")),
    ("rms_norm of shards", aten.rms_norm.default, (X, [7]), without("~")),
    (
        "group_norm of all groups", aten.group_norm.default, (numbers(3, 10, 5), 5),
        other(localize=None),
    ),
    (
        "batch_norm of shards", aten.batch_norm.default,
        (numbers(6, 5), None, None, None, None, True, 0.1, 1e-5, False), without("~"),
    ),
    (
        "amax without gradient", aten.amax.default, (X, [1]),
        lambda r: other(reduce=ReduceOp.MAX)(without("~")(r)),
    ),
    ("argmax of shards", aten.argmax.default, (X, 1), without("~")),
    ("max of shards", aten.max.dim, (X, 1), without("~")),
    ("cumsum of shards", aten.cumsum.default, (X, 1), without("~")),
    ("logsumexp of shards", aten.logsumexp.default, (X, [1]), without("~")),
    ("variance as mean", aten.var.correction, (X, [1]), other(lower=lower_mean)),
    ("rows not masked", aten.embedding.default, (numbers(11, 6), IDS), other(localize=None)),
    (
        "mean loss of shards", aten.cross_entropy_loss.default, (numbers(9, 11), TARGET),
        without("~"),
    ),
    ("relu as linear", aten.relu.default, (X,), other(linear=["self"])),
    ("gelu as linear", aten.gelu.default, (X,), other(linear=["self"])),
    ("power as linear", aten.pow.Tensor_Scalar, (X, 2), other(linear=["self"])),
    (
        "constant where masked", aten.masked_fill.Tensor, (X, mask(5, 7), numbers()),
        other(linear=["self"]),
    ),
    ("branches apart", aten.where.self, (mask(5, 7), X, X + 1), other(linear=["self", "other"])),
    ("ends apart", aten.lerp.Scalar, (X, X + 1, 0.3), other(linear=["self", "end"])),
    ("sum not marked", aten.addmm.default, ADDMM, without("+")),
    ("sum left out", aten.addmm.default, ADDMM, other(linear=["mat1"])),
    (
        "sum of a batch not marked", aten.baddbmm.default,
        (numbers(3, 5, 8), numbers(3, 5, 7), numbers(3, 7, 8)), without("+"),
    ),
    (
        "causal rows from zero", aten.scaled_dot_product_attention.default,
        (*HEADS, None, 0.0, True), other(localize=None),
    ),
    ("keys in shards", aten.scaled_dot_product_attention.default, HEADS, without("~")),
    ("features in shards", aten.scaled_dot_product_attention.default, HEADS, without("!")),
    ("masks drawn apart", aten.dropout.default, (X, 0.4, True), other(localize=None)),
    ("halves as one run", aten.glu.default, (numbers(5, 14), 1), spec("a b -> a c")),
    ("minor for major", aten.kron.default, (numbers(4), numbers(6)), spec("a, b -> (b a)")),
]  # fmt: skip


@contextmanager
def altered(target: Any, change: Change) -> Iterator[None]:
    """The table of rules with one rule changed."""
    kept = RULES[target]
    RULES[target] = change(kept)
    try:
        yield
    finally:
        RULES[target] = kept


def failures(target: Any, args: tuple[Any, ...]) -> list[Failure]:
    """What the proof finds wrong with the rule of one call."""
    return list(prove_call("op", AtenCall(target, args, {}), Tally(), random.Random(0)))


NAMED = {name: rest for name, *rest in MUTATIONS}


@pytest.mark.parametrize("name", sampled(NAMED, list(NAMED)[::3]))
def test_altered_rules_are_caught(name: str) -> None:
    target, args, change = NAMED[name]
    with altered(target, change):
        found = failures(target, args)
    assert found
    assert all(failure.assignment != "binding" for failure in found), str(found[0])


@pytest.mark.parametrize("target", sorted({m[1] for m in MUTATIONS}, key=str), ids=str)
def test_unaltered_rules_pass(target: Any) -> None:
    call = next(AtenCall(m[1], m[2], {}) for m in MUTATIONS if m[1] is target)
    assert list(prove_call("op", call, Tally(), random.Random(0), most=6)) == []


def test_calls_are_told_apart_by_their_shapes() -> None:
    one, same = AtenCall(aten.relu.default, (X,), {}), AtenCall(aten.relu.default, (X + 1,), {})
    assert one.key == same.key
    assert one.key != AtenCall(aten.relu.default, (SQUARE,), {}).key
