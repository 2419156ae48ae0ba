"""Inputs of moves: small integers of every dtype, in memory of every kind."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = (
    torch.float64, torch.float32, torch.bfloat16, torch.complex128, torch.complex64, torch.int64,
    torch.int16, torch.bool,
)  # fmt: skip


def draw(shape: tuple[int, ...], dtype: torch.dtype, rng: random.Random) -> Tensor:
    """Integers whose sums over the devices of a mesh are exact in every dtype."""
    made = torch.Generator().manual_seed(rng.randrange(2**31))
    real = torch.randint(-8, 9, shape, generator=made)
    if dtype is torch.bool:
        return real > 3
    if not dtype.is_complex:
        return real.to(dtype)
    return torch.complex(real.double(), torch.randint(-8, 9, shape, generator=made).double()).to(
        dtype
    )


def _as_is(x: Tensor) -> Tensor:
    return x


def turned(x: Tensor) -> Tensor:
    """The same value with its first dim innermost in memory."""
    return x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x


def _gaps(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


def _offset(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(5), x.reshape(-1)])[5:].view(x.shape)


def expanded(x: Tensor) -> Tensor:
    """The first index of a dim everywhere, with a stride of zero."""
    dim = max(range(x.dim()), key=lambda d: x.shape[d], default=None)
    return x if dim is None or not x.numel() else x.narrow(dim, 0, 1).expand_as(x)


def _conjugated(x: Tensor) -> Tensor:
    return x.clone().conj()


def _negated(x: Tensor) -> Tensor:
    """The imaginary part of a conjugate, negated lazily."""
    return torch.complex(torch.zeros_like(x), x).conj().imag


Look = Callable[[Tensor], Tensor]

ANY: tuple[Look, ...] = (_as_is, turned, _gaps, _offset, expanded)


def looks(dtype: torch.dtype) -> tuple[Look, ...]:
    """What the memory of a value may be: dense, strided, with gaps, changed lazily."""
    if dtype.is_complex:
        return (*ANY, _conjugated, _conjugated)
    return (*ANY, _negated, _negated) if dtype in (torch.float32, torch.float64) else ANY
