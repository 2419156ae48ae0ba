"""Rules of ops that pick parts of dims."""

from __future__ import annotations

import pytest
import torch
from by_hand import check

import shardlang.rules.select  # noqa: F401

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.select.int, (1, 3)),
        (aten.select.int, (0, -1)),
        (aten.select_scatter.default, (torch.randn(5, 7, requires_grad=True), 1, -2)),
        (aten.unbind.int, (1,)),
        (aten.diagonal.default, (0, 1, 2)),
        (aten.diag_embed.default, (1, 0, 1)),
        (aten.tril.default, ()),
        (aten.tril.default, (-1,)),
        (aten.triu.default, (2,)),
        (aten.unfold.default, (2, 2, 2)),
        (aten.unfold.default, (2, 3, 1)),
    ],
)
def test_shards(op: object, args: tuple[object, ...]) -> None:
    assert check(op, torch.randn(5, 4, 7, requires_grad=True), *args) > 0


def test_select_of_booleans_keeps_the_dim_whole() -> None:
    assert check(aten.select.int, torch.randn(5, 3) > 0, 0, 1, sizes=(2,)) == 1
