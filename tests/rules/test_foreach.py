"""Rules of ops on lists, and of primitive ops."""

from __future__ import annotations

import torch
from by_hand import check

import shardlang.rules.foreach
import shardlang.rules.prims  # noqa: F401
from shardlang.rules.registry import in_torch

aten, prims = torch.ops.aten, torch.ops.prims


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True)


def test_elements_go_with_the_element_of_their_place() -> None:
    assert check(aten._foreach_mul.List, [_x(5, 3), _x(4)], [_x(5, 3), _x(4)]) == 6
    assert check(aten._foreach_add.Scalar, [_x(5, 3), _x(4)], 2.0) == 6
    assert check(aten._foreach_powsum.Scalar, [torch.randn(5, 3)], 2) == 4
    for op in in_torch("_foreach_mm.default"):
        assert check(op, [_x(5, 3)], [_x(3, 4)]) == 10


def test_primitive_ops() -> None:
    assert check(prims.sum.default, torch.randn(5, 3, 4), [1]) == 8
    assert check(prims.prod.default, torch.randn(5, 3, 4), [1]) == 4
    assert check(prims.mul.default, torch.randn(5, 3), torch.randn(5, 3)) == 8
