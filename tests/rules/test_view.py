"""Rules of views: local views of shards are shards of the view."""

from __future__ import annotations

import pytest
import torch
from by_hand import check

import shardlang.rules.expand
import shardlang.rules.view  # noqa: F401
from shardlang.rules.refine import reshape_spec

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("before", "after", "spec"),
    [
        ((2, 3, 8), (2, 3, 2, 4), "f0=2 f1=3 (f2=2 f3=4) -> f0=2 f1=3 f2=2 f3=4"),
        ((4, 6), (2, 12), "(f0=2 f1=2) f2=6 -> f0=2 (f1=2 f2=6)"),
        ((4, 6), (6, 4), "(f0=2 f2=2!) (f3=3! f1=2) -> (f0=2 f4=3!) (f5=2! f1=2)"),
        ((3, 4), (2, 6), "f1=3! (f2=2! f0=2) -> f3=2! (f4=3! f0=2)"),
        ((2, 1, 3), (6,), "f0=2 1 f1=3 -> (f0=2 f1=3)"),
        ((), (1, 1), ". -> 1 1"),
    ],
)
def test_reshape_spec(before: tuple[int, ...], after: tuple[int, ...], spec: str) -> None:
    assert reshape_spec(before, after) == spec


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.view.default, ([5, 3, 4, 2],)),
        (aten.reshape.default, ([15, -1],)),
        (aten.view.default, ([2, 60],)),
        (aten.flatten.using_ints, (1, 2)),
        (aten.unflatten.int, (2, [-1, 4])),
        (aten.view_as.default, (torch.zeros(15, 8),)),
        (aten.unsqueeze.default, (1,)),
        (aten.squeeze.default, ()),
        (aten.squeeze.dim, (0,)),
        (aten.permute.default, ([2, -3, 1],)),
        (aten.transpose.int, (0, -1)),
        (aten.movedim.intlist, ([0], [2])),
        (aten.mT.default, ()),
        (aten.expand.default, ([2, -1, 3, 8],)),
        (aten.expand_as.default, (torch.zeros(2, 5, 3, 8),)),
        (aten.repeat.default, ([3, 1, 2, 1],)),
        (aten.tile.default, ([5, 2],)),
        (aten.repeat_interleave.self_int, (3, 1)),
        (aten.repeat_interleave.self_int, (3,)),
        (aten.repeat_interleave.self_Tensor, (torch.tensor([1, 0, 2, 1, 3]), 0)),
    ],
)
def test_shards(op: object, args: tuple[object, ...]) -> None:
    x = torch.randn(5, 3, 8, requires_grad=True)
    assert check(op, x, *args) > 0


def test_squeeze_of_a_local_size_of_one() -> None:
    assert check(aten.squeeze.default, torch.randn(3, 1, 2, requires_grad=True), sizes=(3,)) == 3
    assert check(aten.squeeze.dim, torch.randn(3, 2), 0, sizes=(3,)) == 3


def test_expand_of_a_broadcast_dim() -> None:
    assert check(aten.expand.default, torch.randn(5, 1, 3), [5, 4, 3], sizes=(2,)) == 4
