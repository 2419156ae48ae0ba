"""Writes through `data` and into complex tensors: traced right, or refused with one message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shardlang.capture import CaptureError
from tests.capture.compare import capture_plain, run_both


def complex_of(self: Any, x: Tensor) -> Tensor:
    return torch.view_as_complex(self.lin(x).reshape(8, 3, 2).clone())


def sums(z: Tensor) -> Tensor:
    return torch.view_as_real(z).pow(2).sum() + z.real.sum() * 2 + z.imag.sum()


def parts(self: Any, x: Tensor) -> Any:
    z = complex_of(self, x)
    torch.view_as_real(z)[..., 0] = 0.5
    torch.view_as_real(z)[2:, 1, 1].mul_(3)
    z.real.mul_(2)
    z.imag[:, 0] = x[:, 0]
    z.conj().mul_(1 + 1j)
    return sums(z)


def complex_slices(self: Any, x: Tensor) -> Any:
    z = torch.zeros(8, 3, dtype=torch.complex64)
    z[..., 0] = complex_of(self, x)[:, 1]
    z[1:] *= 2j
    z[:, -1] = torch.complex(x[:, 0], x[:, 1])
    y = self.lin(x) * 1
    torch.view_as_complex(y.view(8, 3, 2)).mul_(1j)
    return sums(z) + y[:, 0].sum() + sums(z.conj().resolve_conj() * (1 + 2j))


def turned_views(self: Any, x: Tensor) -> Any:
    y = self.lin(x) * 1
    y.movedim(0, 1)[0] = 1
    y.swapaxes(0, 1)[2].mul_(2)
    y.mT[1].add_(1)
    y.narrow(1, 1, 2).mul_(2)
    return y.pow(2).sum() + y[0].sum()


def data_of_a_buffer(self: Any, x: Tensor) -> Any:
    self.kept.data.mul_(0.5)
    self.kept.data.copy_(self.kept.data + x.mean(0))
    y = self.lin(x) * self.kept
    return (y * y.data.abs().max()).sum() + (self.lin.weight.data.norm() * y).sum()


@pytest.mark.parametrize("forward", [parts, complex_slices, turned_views, data_of_a_buffer])
def test_writes_are_traced(forward: Callable[..., Any]) -> None:
    source, captured, specs = capture_plain(forward, kept=torch.arange(6.0) / 3 + 0.2)
    assert run_both(source, captured, specs).error() < 1e-5
    assert run_both(source, captured, specs, double=True).error() < 1e-12


def clamps_data(self: Any, x: Tensor) -> Any:
    self.lin.weight.data.clamp_(-0.1, 0.1)
    return self.lin(x).sum()


def scales_a_row(self: Any, x: Tensor) -> Any:
    with torch.no_grad():
        self.lin.weight[0].mul_(0.9)
    return self.lin(x).sum()


def assigns_data(self: Any, x: Tensor) -> Any:
    self.lin.weight.data = self.lin.weight.data * 0.9
    return self.lin(x).sum()


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (clamps_data, "the forward changes the parameter `lin.weight` in place"),
        (scales_a_row, "the forward changes the parameter `lin.weight` in place"),
        (assigns_data, "the forward assigns the `data` of a tensor"),
    ],
)
def test_a_written_parameter_is_refused(forward: Callable[..., Any], says: str) -> None:
    with pytest.raises(CaptureError, match=says) as found:
        capture_plain(forward)
    assert found.value.code == "SH0357" and found.value.source.startswith("test_writes.py:")
