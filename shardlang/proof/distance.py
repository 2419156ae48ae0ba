"""How far two tensors are apart: finite numbers by size, all others position by position."""

from __future__ import annotations

import torch
from torch import Tensor


def counts(value: Tensor) -> bool:
    """Whether a tensor holds real or complex numbers, rather than integers or truth values."""
    return value.is_floating_point() or value.is_complex()


def wide(value: Tensor) -> Tensor:
    """A detached tensor of any kind in float64; complex numbers as pairs. Shape `…` or `… 2`."""
    value = value.detach()
    if value.is_complex():
        return torch.view_as_real(value.to(torch.complex128).resolve_conj())
    return value.to(torch.float64)


def size(value: Tensor | None) -> float:
    """The largest finite magnitude."""
    if value is None or not value.numel() or value.dtype is torch.bool:
        return 0.0
    found = wide(value).abs()
    found = found[torch.isfinite(found)]
    return float(found.max()) if found.numel() else 0.0


def norm(value: Tensor | None) -> float:
    """The Euclidean norm of the finite numbers."""
    return 0.0 if value is None else float(wide(value).nan_to_num(0.0, 0.0, 0.0).norm())


def is_finite(value: Tensor) -> bool:
    """Whether no number is infinite or undefined."""
    return not counts(value) or bool(torch.isfinite(wide(value)).all())


def gap(a: Tensor, b: Tensor) -> float:
    """max|a-b|; infinite where shapes differ, integers do, or numbers that are not finite.

    An infinity equals one of its sign at its position alone, and an undefined number another one.
    """
    apart = _apart(a, b)
    if apart is None:
        return float("inf")
    return float(apart.max()) if apart.numel() else 0.0


def norm_gap(a: Tensor, b: Tensor) -> float:
    """|a-b| in the Euclidean norm; infinite where `gap` is."""
    apart = _apart(a, b)
    return float("inf") if apart is None else float(apart.norm())


def _apart(a: Tensor, b: Tensor) -> Tensor | None:
    """|a-b| at every position; None where no difference can be given."""
    if a.shape != b.shape or counts(a) != counts(b) or a.is_complex() != b.is_complex():
        return None
    if not counts(a):
        return torch.zeros(0) if torch.equal(a, b) else None
    a, b = wide(a), wide(b)
    same = (a == b) | (a.isnan() & b.isnan())
    apart = torch.where(same, torch.zeros_like(a), a - b).abs()
    return apart if bool(torch.isfinite(apart).all()) else None
