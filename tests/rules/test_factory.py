"""Rules of factories: every device makes its own part."""

from __future__ import annotations

import pytest
import torch
from by_hand import check

import shardlang.rules.factory  # noqa: F401
from shardlang.ir.device_values import specialise
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.factor import Factor
from shardlang.ir.mesh import Axis
from shardlang.rules.local_shape import arange_here, place

aten = torch.ops.aten
X = torch.randn(5, 3, requires_grad=True)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.zeros.default, ([5, 4],)),
        (aten.full.default, ([5, 4], 2.5)),
        (aten.arange.default, (7,)),
        (aten.arange.start, (3, 10)),
        (aten.arange.start_step, (1.5, 10, 0.75)),
        (aten.linspace.default, (0.0, 1.0, 7)),
        (aten.eye.m, (5, 7)),
        (aten.tril_indices.default, (3, 4)),
        (aten.zeros_like.default, (X,)),
        (aten.full_like.default, (X, 3)),
        (aten.fill.Tensor, (X, torch.tensor(2.0, requires_grad=True))),
        (aten.new_zeros.default, (X, [5, 3])),
        (aten.new_full.default, (X, [7], 2)),
    ],
)
def test_shards(op: object, args: tuple[object, ...]) -> None:
    assert check(op, *args) > 0


def test_arange_over_a_packed_dim() -> None:
    axis = Axis("a", 2)
    dim = DimLayout(((Factor(3, ()), Factor(4, (axis,))),))
    at = specialise(place(dim), {"a": 1})
    made = arange_here(0, 2, at, 6, dtype=torch.int64, device=torch.device("cpu"))
    assert made.tolist() == [4, 6, 12, 14, 20, 22]
