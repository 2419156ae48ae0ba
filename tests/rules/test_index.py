"""Rules of reads and writes at places held in tensors, and of ordering."""

from __future__ import annotations

import pytest
import torch
from by_hand import call_of, check

import shardlang.rules.index
import shardlang.rules.scatter
import shardlang.rules.sort  # noqa: F401
from shardlang.rules.notation import Refusal
from shardlang.rules.registry import RULES

aten = torch.ops.aten
I = torch.tensor([4, 0, -1, 2, 2])  # noqa: E741
J = torch.tensor([[0], [3], [-2]])
K = torch.randint(0, 5, (5, 4, 7), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([True, False, True, False, False])


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.index.Tensor, ([I],)),
        (aten.index.Tensor, ([None, J, I],)),
        (aten.index.Tensor, ([I, None, J],)),
        (aten.index.Tensor, ([None, torch.tensor(3)],)),
        (aten.index_select.default, (1, torch.tensor([3, 1, 1]))),
        (aten.gather.default, (0, K)),
        (aten.gather.default, (0, K[:2, :3, :6])),
        (aten.take_along_dim.default, (K[:2, :1], 0)),
        (aten.take.default, (K,)),
        (aten.scatter.src, (0, K[:1], _x(1, 4, 7))),
        (aten.scatter.value, (0, K[:1], 0.0)),
        (aten.scatter_add.default, (0, K, _x(5, 4, 7))),
        (aten.scatter_add.default, (-3, K[:3, :2], torch.randn(4, 3, 7))),
        (aten.scatter_reduce.two, (0, K, _x(5, 4, 7), "amax")),
        (aten.scatter_reduce.two, (0, K, _x(5, 4, 7), "mean")),
        (aten.index_add.default, (0, I % 5, _x(5, 4, 7))),
        (aten.index_copy.default, (1, torch.tensor([3, 0]), _x(5, 2, 7))),
        (aten.index_fill.int_Scalar, (1, torch.tensor([3, 0]), 2.0)),
        (aten.index_put.default, ([I], _x(5, 4, 7), True)),
        (aten.index_put.default, ([None, J[:, 0], J[:, 0]], _x(5, 1))),
        (aten.index_put.default, ([MASK], torch.tensor(2.0))),
        (aten.sort.default, (1,)),
        (aten.topk.default, (2, 0)),
        (aten.argsort.default, ()),
    ],
)
def test_shards(op: object, args: tuple[object, ...]) -> None:
    assert check(op, _x(5, 4, 7), *args) > 0


def test_one_hot_and_lookups() -> None:
    assert check(aten.one_hot.default, K % 5, 5) == 8
    rows = torch.sort(torch.randn(5, 6)).values
    assert check(aten.searchsorted.Tensor, rows, _x(5, 4)) > 0


def test_a_row_split_over_more_devices_than_indices() -> None:
    assert check(aten.index.Tensor, _x(2, 3), [torch.tensor([1, 0])], sizes=(3,)) == 4
    assert check(aten.gather.default, _x(2, 3), 0, torch.tensor([[1, 0, 1]]), sizes=(3,)) > 0


def test_a_mask_that_sizes_the_result_is_refused() -> None:
    call, _ = call_of(aten.index.Tensor, _x(5, 3), [MASK])
    with pytest.raises(Refusal, match="depends on the data"):
        RULES[aten.index.Tensor].bind(call)
