"""Rules of convolutions, image ops, transforms and matrix decompositions."""

from __future__ import annotations

import pytest
import torch
from by_hand import check

import shardlang.rules.conv
import shardlang.rules.fft
import shardlang.rules.linalg
import shardlang.rules.pool  # noqa: F401

aten = torch.ops.aten


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True, dtype=torch.float64)


def _definite(*batch: int) -> torch.Tensor:
    x = torch.randn(*batch, 3, 3, dtype=torch.float64)
    return (x @ x.mT + torch.eye(3)).requires_grad_()


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.conv1d.default, (_x(3, 4, 7), _x(5, 4, 3), _x(5))),
        (aten.conv2d.default, (_x(3, 6, 7, 5), _x(9, 2, 3, 3), _x(9), [2, 1], [1, 0], [1, 1], 3)),
        (aten.conv2d.default, (_x(4, 7, 5), _x(5, 4, 3, 2))),
        (aten.conv_transpose1d.default, (_x(3, 6, 7), _x(6, 2, 3), _x(6), [2], [0], [0], 3)),
        (aten.avg_pool2d.default, (_x(3, 4, 6, 6), [2, 2])),
        (aten.max_pool2d.default, (_x(3, 4, 6, 6), [3, 3], [2, 2], [1, 1])),
        (aten.adaptive_avg_pool2d.default, (_x(4, 6, 6), [1, 1])),
        (aten.upsample_bilinear2d.vec, (_x(3, 4, 3, 3), [6, 6], False, None)),
        (aten.pixel_shuffle.default, (_x(3, 12, 3, 5), 2)),
        (aten.im2col.default, (_x(3, 4, 6, 6), [2, 2], [1, 1], [0, 0], [2, 2])),
        (aten.grid_sampler_2d.default, (_x(3, 4, 6, 5), _x(3, 5, 4, 2), 0, 0, False)),
        (aten.affine_grid_generator.default, (_x(3, 2, 3), [3, 4, 5, 6], False)),
        (aten.linalg_cholesky_ex.default, (_definite(4),)),
        (aten.linalg_solve.default, (_definite(4), _x(4, 3, 2))),
        (aten.linalg_solve.default, (_definite(4), _x(4, 3))),
        (aten.linalg_inv.default, (_definite(4),)),
        (aten.linalg_slogdet.default, (_definite(4, 2),)),
    ],
)
def test_shards(op: object, args: tuple[object, ...]) -> None:
    assert check(op, *args, empty=False) > 0


def test_transforms_of_complex_numbers() -> None:
    signal = torch.randn(5, 8, dtype=torch.float64)
    assert check(aten.fft_rfft.default, signal) > 0
    assert check(aten.fft_fftn.default, signal, None, [0]) > 0
    assert check(aten.stft.default, signal, 4, None, None, torch.ones(4, dtype=torch.float64),
                 return_complex=True) > 0  # fmt: skip
