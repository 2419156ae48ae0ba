"""Checks on data are left out of the trace with one note; branches on data are refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Normal, kl_divergence

from shardlang.capture import CaptureError
from tests.capture.asserting import caught, checks
from tests.capture.compare import capture_plain, run_both


def branches_that_raise(self: Any, x: Tensor) -> Any:
    if (x.shape[0] > 2 and (x.abs() > 1e3).any()) or x.isnan().any():
        message = f"bad {x.shape}"
        raise ValueError(message)
    if not torch.isfinite(x).all():
        raise ValueError
    if (x > 1e3).any():
        warnings.warn("large", stacklevel=2)
    if x.isfinite().all():
        y = self.lin(x)
    else:
        raise ValueError
    return y.pow(2).sum()


def numbers_for_checks(self: Any, x: Tensor) -> Any:
    with torch.no_grad():
        count = (x < 1e3).sum().item()
    torch._check(count == 48)
    if (x < 1e3).sum().item() != 48:
        raise ValueError(count)
    return self.lin(x).pow(2).sum()


def distributions(self: Any, x: Tensor) -> Any:
    """The arguments of distributions are validated, and so are samples."""
    h = self.lin(x)
    far = kl_divergence(Normal(h, h.exp()), Normal(0.0, 1.0)).sum()
    picked = Categorical(logits=h).log_prob(x[:, 0].abs().long().clamp(max=5)).sum()
    return far + picked + Bernoulli(logits=h).log_prob((x > 0).float()).sum()


@pytest.mark.parametrize(
    "forward", [checks, branches_that_raise, numbers_for_checks, distributions]
)
def test_checks_are_left_out_with_one_note(
    forward: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # `torch.compile` switches validation off for the rest of the process.
    monkeypatch.setattr(Distribution, "_validate_args", True)
    source, captured, specs = capture_plain(forward)
    assert run_both(source, captured, specs).error() < 1e-6
    (note,) = captured.remarks
    assert (note.code, note.severity) == ("SH0362", "note")
    assert note.source.startswith(("test_checks.py:", "asserting.py:"))


def branch(self: Any, x: Tensor) -> Any:
    return self.lin(x if x.sum() > 0 else -x).sum()


def other_branch(self: Any, x: Tensor) -> Any:
    if x.sum() > 0:
        raise ValueError
    elif x.sum() < -5:
        x = x * 2
    return self.lin(x).sum()


def used_number(self: Any, x: Tensor) -> Any:
    count = (x > 0).sum().item()
    torch._check(count > 1)
    return self.lin(x[:count]).sum()


@pytest.mark.parametrize("forward", [branch, caught, other_branch, used_number])
def test_what_gives_a_value_is_refused(forward: Callable[..., Any]) -> None:
    with pytest.raises(CaptureError) as found:
        capture_plain(forward)
    assert found.value.code == "SH0354" and found.value.source
