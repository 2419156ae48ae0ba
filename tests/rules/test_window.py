"""Ops that read beyond the edges of split dims: every split of each, of uneven sizes."""

from __future__ import annotations

import random

import pytest
import torch

import shardlang.rules.conv
import shardlang.rules.join
import shardlang.rules.pool
import shardlang.rules.shift
import shardlang.rules.sliding  # noqa: F401
from shardlang.proof.rules.calls import AtenCall
from shardlang.proof.rules.prove import Tally, prove_call

aten = torch.ops.aten


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.conv2d.default, (_x(2, 4, 11, 7), _x(6, 2, 3, 3), _x(6), [2, 1], [1, 1], [1, 1], 2)),
        (aten.conv1d.default, (_x(2, 3, 13), _x(4, 3, 5), None, [2], [3], [2])),
        (aten.conv1d.default, (_x(2, 3, 7), _x(4, 3, 7), None, [1], [6])),
        (aten.conv1d.padding, (_x(2, 3, 13), _x(4, 3, 3), None, [1], "same")),
        (aten.conv2d.default, (_x(2, 4, 8, 12), _x(6, 4, 2, 4), _x(6), [2, 4])),
        (aten.conv3d.default, (_x(1, 2, 5, 4, 3), _x(2, 2, 3, 1, 3), None, [1] * 3, [1, 0, 1])),
        (aten.conv_transpose1d.default, (_x(2, 4, 7), _x(4, 3, 5), _x(6), [3], [2], [1], 2, [2])),
        (
            aten.conv_transpose2d.input,
            (_x(2, 4, 5, 4), _x(4, 3, 3, 2), _x(3), [2, 1], [1, 0], [1, 0]),
        ),
        (aten.max_pool2d.default, (_x(2, 4, 9, 7), [3, 3], [2, 2], [1, 1])),
        (aten.max_pool2d.default, (_x(2, 4, 8, 7), [3, 2], [2, 2], [1, 0], [1, 1], True)),
        (aten.avg_pool2d.default, (_x(2, 4, 9, 7), [3, 2], [2, 1], [1, 0])),
        (aten.adaptive_avg_pool2d.default, (_x(2, 4, 9, 6), [1, 3])),
        (aten.im2col.default, (_x(2, 3, 9, 5), [3, 2], [2, 1], [1, 1], [2, 1])),
        (aten.unfold.default, (_x(3, 11), 1, 4, 2)),
        (aten.diff.default, (_x(3, 11), 2, 1)),
        (aten.constant_pad_nd.default, (_x(5, 7), [1, 2, 0, -1], 2.5)),
        (aten.pad.default, (_x(5, 7), [3, -1], "circular")),
        (aten.pad.default, (_x(2, 5, 7), [3, 2], "reflect")),
        (aten.reflection_pad2d.default, (_x(2, 5, 7), [-1, 2, 3, 1])),
        (aten.replication_pad1d.default, (_x(5, 7), [3, 2])),
        (aten.slice.Tensor, (_x(5, 11), 1, 1, -1)),
        (aten.slice.Tensor, (_x(5, 11), 1, 2, 11, 3)),
        (aten.roll.default, (_x(5, 7), [3, -1], [0, 1])),
        (aten.roll.default, (_x(7), [-9])),
        (aten.flip.default, (_x(5, 7), [1, 0])),
    ],
)
def test_every_split(op: object, args: tuple[object, ...]) -> None:
    tally = Tally()
    found = list(prove_call("op", AtenCall(op, args, {}), tally, random.Random(0), most=6))
    assert not found
    assert tally.assignments > 3
