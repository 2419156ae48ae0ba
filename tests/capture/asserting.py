"""Forwards with `assert`, in a file whose assertions pytest does not rewrite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def checks(self: Any, x: Tensor) -> Any:
    assert x.isfinite().all() and not x.isnan().any(), "not finite"
    assert 0 <= x.abs().max() < 1e4
    assert all(bool(row.isfinite().all()) for row in x)
    torch._assert(x.isfinite().all(), "not finite")
    torch._check(bool(x.isfinite().all()))
    torch._check(x.isfinite().all().item())
    torch._check_tensor_all(x.isfinite())
    torch._assert_async(x.isfinite().all())
    return self.lin(x).pow(2).sum()


def caught(self: Any, x: Tensor) -> Any:
    """What the code does where the check fails is a value."""
    try:
        assert x.sum() > 0
    except AssertionError:
        x = -x
    return self.lin(x).sum()
