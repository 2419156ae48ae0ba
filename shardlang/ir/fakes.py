"""Trying a call on fake tensors, at little more than the cost of the call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from shardlang.ir.compat import (
    FakeTensor,
    FakeTensorMode,
    active_fake_mode,
    forget_fakes,
    no_dispatch,
)

_CPU = torch.device("cpu")
_FREE: list[FakeTensorMode] = []


@contextmanager
def fake_mode() -> Iterator[None]:
    """Inside, ops run on fake tensors, of which none may be used after it.

    A new mode writes down the stack of its caller, which takes as long as a call under it. So modes
    are used again, by one block at a time.
    """
    try:
        mode = _FREE.pop()
    except IndexError:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            yield
    finally:
        forget_fakes(mode)
        _FREE.append(mode)


def fake(
    shape: Sequence[int],
    dtype: torch.dtype,
    strides: Sequence[int] | None = None,
    device: torch.device = _CPU,
) -> torch.Tensor:
    """What `torch.empty` or `torch.empty_strided` gives under the fake mode that is active.

    It takes a twentieth of the time. No other mode sees it.
    """
    mode = active_fake_mode()
    assert mode is not None, "no fake mode is active"
    with no_dispatch():
        if strides is None:
            like = torch.empty(shape, dtype=dtype, device="meta")
        else:
            like = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        return FakeTensor(mode, like, device)
