"""Rules of joins, cuts and shifts."""

from __future__ import annotations

import pytest
import torch
from by_hand import check

import shardlang.rules.join
import shardlang.rules.shift  # noqa: F401

aten = torch.ops.aten


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.cat.default, ([_x(5, 3), _x(5, 4), _x(0)], -1)),
        (aten.stack.default, ([_x(5, 3), _x(5, 3)], 1)),
        (aten.hstack.default, ([_x(5), _x(3)],)),
        (aten.vstack.default, ([_x(5), _x(5)],)),
        (aten.split.Tensor, (_x(4, 7), 3, 1)),
        (aten.split_with_sizes.default, (_x(9, 4), [4, 3, 2])),
        (aten.chunk.default, (_x(7, 4), 3)),
        (aten.tensor_split.indices, (_x(7, 4), [2, 5])),
        (aten.hsplit.int, (_x(7, 4), 2)),
        (aten.meshgrid.indexing, ([_x(5), _x(3)])),
        (aten.slice.Tensor, (_x(9, 4), 0, 2, -3)),
        (aten.slice.Tensor, (_x(9, 4), 0, 0, 9223372036854775807)),
        (aten.slice.Tensor, (_x(4, 9), -1, 1, None, 3)),
        (aten.slice.Tensor, (_x(4, 9), -1, 0, None, 2)),
        (aten.slice.Tensor, (_x(4, 9), -1, 5, 2)),
        (aten.narrow.default, (_x(9, 4), 0, 4, 5)),
        (aten.slice_scatter.default, (_x(9, 4), _x(4, 4), 0, 2, -3)),
        (aten.slice_scatter.default, (_x(9, 4), _x(3, 4), 0, 1, None, 3)),
        (aten.roll.default, (_x(5, 3), [1], [-1])),
        (aten.flip.default, (_x(5, 3), [0])),
        (aten.rot90.default, (_x(5, 3, 4), 1, [0, 2])),
        (aten.constant_pad_nd.default, (_x(5, 3), [1, -1])),
        (aten.constant_pad_nd.default, (_x(5, 3), [0, 1], 2.5)),
        (aten.pad.default, (_x(5, 3, 4), [1, 1], "reflect")),
        (aten.reflection_pad1d.default, (_x(5, 3, 4), [1, 1])),
    ],
)
def test_shards(op: object, args: tuple[object, ...]) -> None:
    kwargs = {"indexing": "xy"} if op is aten.meshgrid.indexing else {}
    args = (list(args),) if kwargs else args
    assert check(op, *args, **kwargs) > 0
