"""Initializers that look at their own draws, as single operators that a tape can hold."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from shardlang.capture.errors import CaptureError
from shardlang.ir.compat import TRUNC_NORMAL
from shardlang.ir.own_ops import define, implement

_draw_trunc_normal: Callable[..., torch.Tensor] = getattr(*TRUNC_NORMAL)
define(
    "trunc_normal_(Tensor(a!) value, float mean, float std, float low, float high) -> Tensor(a!)",
    draws=True,
)
_TRUNC_NORMAL = implement(
    "trunc_normal_", _draw_trunc_normal, lambda value, mean, std, low, high: value
)
TRUNC_NORMAL_ = _TRUNC_NORMAL.overloadpacket
"""The packet of that operator."""


@contextlib.contextmanager
def atomic_initializers() -> Iterator[None]:
    """Let `trunc_normal_`, which redraws until all values fit, run as one operator."""
    with mock.patch.object(*TRUNC_NORMAL, _trunc_normal):
        yield


@contextlib.contextmanager
def refuse_truncated() -> Iterator[None]:
    """Raise SH0358 inside the body for `trunc_normal_`, which redraws until all values fit."""
    with mock.patch.object(*TRUNC_NORMAL, _refuse):
        yield


def _refuse(*_: object, **__: object) -> torch.Tensor:
    raise CaptureError(
        "SH0358",
        "the forward draws with `trunc_normal_`, which redraws by what it has drawn",
        help="draw with `torch.randn_like(x).clamp(-2, 2)`, or once, in the constructor",
    )


def _trunc_normal(
    tensor: torch.Tensor,
    mean: float,
    std: float,
    a: float,
    b: float,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """What `torch.nn.init.trunc_normal_` calls while a constructor is recorded."""
    if generator is not None:
        return _draw_trunc_normal(tensor, mean, std, a, b, generator)
    with torch.no_grad():
        drawn: torch.Tensor = _TRUNC_NORMAL(tensor, mean, std, a, b)
    return drawn
