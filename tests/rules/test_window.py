"""Convolution and pooling over split spatial dims: exchange of edges, uneven sizes."""

from __future__ import annotations

import random

import pytest
import torch

import shardlang.rules.conv
import shardlang.rules.join
import shardlang.rules.pool
import shardlang.rules.shift  # noqa: F401
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.mesh import Axis
from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.prove import Tally, prove_call
from shardlang.rules.window import reach

aten = torch.ops.aten


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.conv2d.default, (_x(2, 4, 11, 7), _x(6, 2, 3, 3), _x(6), [2, 1], [1, 1], [1, 1], 2)),
        (aten.conv1d.default, (_x(2, 3, 13), _x(4, 3, 5), None, [2], [3], [2])),
        (aten.conv1d.padding, (_x(2, 3, 13), _x(4, 3, 3), None, [1], "same")),
        (aten.conv2d.default, (_x(2, 4, 8, 12), _x(6, 4, 2, 4), _x(6), [2, 4])),
        (aten.max_pool2d.default, (_x(2, 4, 9, 7), [3, 3], [2, 2], [1, 1])),
        (aten.avg_pool2d.default, (_x(2, 4, 9, 7), [3, 2], [2, 1], [1, 0])),
        (aten.adaptive_avg_pool2d.default, (_x(2, 4, 9, 6), [1, 3])),
        (aten.constant_pad_nd.default, (_x(5, 7), [1, 2, 0, -1], 2.5)),
        (aten.slice.Tensor, (_x(5, 11), 1, 1, -1)),
    ],
)
def test_every_split(op: object, args: tuple[object, ...]) -> None:
    tally = Tally()
    found = list(prove_call("op", AtenCall(op, args, {}), tally, random.Random(0), most=14))
    assert not found
    assert tally.assignments > 5


def test_reach_over_uneven_shards() -> None:
    axes = (Axis("a", 4),)
    before, after = DimLayout.shard(30, axes), DimLayout.shard(15, axes)
    assert reach(before, after, 3, 2, 1) == (1, 1)
    assert reach(DimLayout.shard(8, axes), DimLayout.shard(8, axes), 7, 1, 3) == (3, 3)
