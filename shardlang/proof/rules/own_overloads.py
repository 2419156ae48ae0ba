"""Calls of overloads that PyTorch's samples do not reach: with numbers for tensors, and kernels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from shardlang.ir.arguments import Args
from shardlang.ir.compat import OpOverload
from shardlang.proof.rules.calls import AtenCall

aten = torch.ops.aten

_INTEGERS = """
    __lshift__.Scalar __lshift__.Tensor __rshift__.Scalar __rshift__.Tensor __xor__.Scalar
    __xor__.Tensor bitwise_and.Scalar bitwise_and.Scalar_Tensor bitwise_left_shift.Scalar_Tensor
    bitwise_left_shift.Tensor_Scalar bitwise_or.Scalar bitwise_or.Scalar_Tensor
    bitwise_right_shift.Scalar_Tensor bitwise_right_shift.Tensor_Scalar bitwise_xor.Scalar
    bitwise_xor.Scalar_Tensor
"""
_FLOATS = """
    add.Scalar alias clamp_max contiguous div.Scalar eq.Scalar float_power.Scalar
    float_power.Tensor_Scalar fmod.Scalar ge.Scalar gt.Scalar le.Scalar lt.Scalar mul.Scalar
    ne.Scalar norm.Scalar pow.Scalar remainder.Scalar remainder.Scalar_Tensor sub.Scalar
    special_xlog1py.other_scalar special_xlog1py.self_scalar special_zeta.other_scalar
    special_zeta.self_scalar xlogy.Scalar_Other xlogy.Scalar_Self
"""
_POLYNOMIALS = """
    chebyshev_polynomial_t chebyshev_polynomial_u chebyshev_polynomial_v chebyshev_polynomial_w
    hermite_polynomial_h hermite_polynomial_he laguerre_polynomial_l legendre_polynomial_p
    shifted_chebyshev_polynomial_t shifted_chebyshev_polynomial_u shifted_chebyshev_polynomial_v
    shifted_chebyshev_polynomial_w
"""


def between(low: float, high: float, *shape: int, seed: int = 0) -> Tensor:
    """Uneven numbers in a range."""
    generator = torch.Generator().manual_seed(seed + 31 * sum(shape))
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)


def overload_calls() -> Iterator[AtenCall]:
    """All of them."""
    for target in _named(_INTEGERS):
        yield AtenCall(target, _filled(target, (between(1, 9, 5, 7)).long(), 2), {})
    for target in _named(_FLOATS):
        yield AtenCall(target, _filled(target, between(1.2, 3, 5, 7), 2.5), {})
    for name in _POLYNOMIALS.split():
        op = getattr(aten, f"special_{name}")
        yield AtenCall(op.n_scalar, (between(0.1, 0.9, 5, 7), 3), {})
        yield AtenCall(op.x_scalar, (0.3, between(1, 4, 5, 7).floor()), {})
    yield from _clamps()
    yield from _views()
    yield from _kernels()
    yield from _resampling()
    yield from _matrices()
    yield from _transforms()


def _named(text: str) -> list[OpOverload]:
    pairs = (name.partition(".") for name in text.split())
    return [getattr(getattr(aten, name), overload or "default") for name, _, overload in pairs]


def _filled(target: OpOverload, x: Tensor, number: float) -> Args:
    """Tensors and numbers for all arguments without a default."""
    wanted = [a for a in target._schema.arguments if not a.has_default_value()]
    return tuple(x.clone() if str(a.type) == "Tensor" else number for a in wanted)


def _clamps() -> Iterator[AtenCall]:
    x = between(-1, 1, 5, 7)
    yield AtenCall(aten.clamp.default, (x, -0.5, 0.5), {})
    yield AtenCall(aten.clip.default, (x, -0.5, 0.5), {})
    yield AtenCall(aten.clip.Tensor, (x, x - 0.1, between(0, 1, 7)), {})
    yield AtenCall(aten.div.Scalar_mode, (x, 0.3), {"rounding_mode": "floor"})
    rows = torch.arange(10).view(5, 2) % 7
    yield AtenCall(aten.scatter.value, (x, 1, rows, 2.5), {})


def _views() -> Iterator[AtenCall]:
    x = between(-1, 1, 5, 7)
    z = torch.complex(x, 2 * x)
    for target in (aten._conj, aten._conj_physical, aten.view_as_real):
        yield AtenCall(target.default, (z,), {})
    yield AtenCall(aten._to_copy.default, (x,), {"dtype": torch.float32})
    yield AtenCall(aten._unsafe_view.default, (x, [35]), {})
    yield AtenCall(aten._unsafe_view.default, (between(-1, 1, 5, 6), [5, 2, 3]), {})
    yield AtenCall(aten.view.dtype, (x, torch.int64), {})


def _kernels() -> Iterator[AtenCall]:
    x = between(-1, 1, 5, 7)
    for target in (aten._softmax, aten._log_softmax):
        yield AtenCall(target.default, (x, 1, False), {})
        yield AtenCall(target.default, (x, 0, False), {})
    image = between(-1, 1, 3, 5, 7)
    mean, spread = between(-1, 1, 5), between(0.5, 1, 5)
    scale = (mean + 2, mean, mean.clone(), spread)
    yield AtenCall(
        aten._native_batch_norm_legit_functional.default, (image, *scale, True, 0.1, 1e-5), {}
    )
    yield AtenCall(
        aten._native_batch_norm_legit_no_training.default, (image, *scale, 0.1, 1e-5), {}
    )
    yield AtenCall(
        aten.convolution.default,
        (between(-1, 1, 3, 4, 9), between(-1, 1, 5, 4, 3), mean, [1], [1], [1], False, [0], 1), {},
    )  # fmt: skip
    yield AtenCall(aten._adaptive_avg_pool2d.default, (between(-1, 1, 3, 5, 6, 7), [3, 2]), {})
    yield AtenCall(
        aten._adaptive_avg_pool3d.default, (between(-1, 1, 3, 5, 4, 6, 7), [2, 3, 2]), {}
    )


def _resampling() -> Iterator[AtenCall]:
    for rank, sizes in enumerate(([11], [5, 9], [5, 3, 9]), 1):
        x = between(-1, 1, 3, 5, *(4, 6, 7)[:rank])
        yield AtenCall(getattr(aten, f"upsample_nearest{rank}d").default, (x, sizes), {})
        yield AtenCall(getattr(aten, f"_upsample_nearest_exact{rank}d").default, (x, sizes), {})
        kinds = {1: ["linear1d"], 2: ["bilinear2d", "bicubic2d"], 3: ["trilinear3d"]}[rank]
        for kind in kinds:
            yield AtenCall(getattr(aten, f"upsample_{kind}").default, (x, sizes, True), {})
    x = between(-1, 1, 3, 5, 4, 6)
    yield AtenCall(aten._upsample_bicubic2d_aa.default, (x, [5, 9], False), {})


def _matrices() -> Iterator[AtenCall]:
    x = between(-1, 1, 5, 4, 4)
    square = x @ x.mT + torch.eye(4, dtype=torch.float64)
    for target in (aten._linalg_det, aten._linalg_slogdet, aten.linalg_matrix_exp):
        yield AtenCall(target.default, (square,), {})
    yield AtenCall(aten._linalg_eigh.default, (square,), {})
    yield AtenCall(aten._linalg_svd.default, (square,), {})
    yield AtenCall(aten._linalg_solve_ex.default, (square, between(-1, 1, 5, 4, 3)), {})


def _transforms() -> Iterator[AtenCall]:
    x = between(-1, 1, 5, 6, 8)
    yield AtenCall(aten._fft_r2c.default, (x, [2], 0, True), {})
    yield AtenCall(aten._fft_c2c.default, (torch.complex(x, 2 * x), [2], 0, True), {})
    half = torch.fft.rfft(x)
    yield AtenCall(aten._fft_c2r.default, (half, [2], 0, 8), {})
