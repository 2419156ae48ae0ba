"""Tensors that a forward makes without a dtype, or from integers, are raised like all else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.capture.proofs import proof

KINDS: dict[str, Callable[[Any, Tensor], Tensor]] = {}
"""What a model makes of `h: 4 16`; `s.c` is a linear layer 16 to 16."""


def kind(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    KINDS[forward.__name__] = forward
    return forward


@kind
def factories(s: Any, h: Tensor) -> Tensor:
    state = s.c(torch.zeros(4, 16)) + torch.ones(16, 16)[0]
    state = state + h @ torch.eye(16) + s.c(torch.linspace(0, 1, 16))
    state = state + s.c(torch.full((16,), 0.3)) + s.c(torch.arange(0, 1.6, 0.1))
    return state + s.c(torch.logspace(0, 1, 16)) + h @ torch.hann_window(16).diag()


@kind
def filled(s: Any, h: Tensor) -> Tensor:
    z = torch.zeros(4, 16)
    z[:, :8] = h[:, 8:]
    z = z.scatter(1, torch.arange(16).expand(4, 16), h) + torch.empty(4, 16).fill_(0.5)
    z = torch.zeros(4, 16).index_add(0, torch.arange(4) % 3, s.c(z))
    return z.scatter_add_(0, torch.arange(4)[:, None].expand(4, 16) // 2, h)


@kind
def literals(s: Any, h: Tensor) -> Tensor:
    h = h @ torch.tensor([[1.0, 0.0], [0.5, 2.0]]).repeat(8, 8) * torch.tensor(3.0)
    return h @ h.new_ones(16, 16) + h.new_tensor([0.5] * 16) + s.c(torch.tensor([1] * 16) / 3)


@kind
def from_integers(s: Any, h: Tensor) -> Tensor:
    h = h + s.c(10000 ** (-torch.arange(0, 16) / 16)) + s.c(torch.exp(-torch.arange(16)))
    h = h @ torch.where(torch.arange(16)[:, None] >= torch.arange(16), 1.0, 0.0)
    h = h + s.c(torch.arange(16) * 0.5) + s.c(torch.arange(16).to(torch.get_default_dtype()))
    return s.c(F.one_hot(torch.arange(4), 16).float()) + h @ ((torch.eye(16) > 0) / 2)


@kind
def drawn(s: Any, h: Tensor) -> Tensor:
    noise = torch.randn(4, 16) * torch.rand(4, 1) + torch.normal(0.0, 1.0, (4, 16))
    noise = noise + torch.bernoulli(torch.full((4, 16), 0.8)) + torch.empty(4, 16).uniform_()
    return s.c(noise) + h[torch.multinomial(torch.tensor([0.1, 0.2, 0.3, 0.4]), 4)]


@kind
def masks(s: Any, h: Tensor) -> Tensor:
    hidden = torch.full((4, 4), -math.inf).triu(1) + torch.ones(4, 4).tril() / 4
    lowest = torch.where(torch.ones(4, 4).tril() > 0, h @ h.t(), torch.finfo(h.dtype).min)
    return (hidden + h @ h.t()).softmax(-1) @ s.c(h) + lowest.softmax(-1) @ h


@kind
def complex_ones(s: Any, h: Tensor) -> Tensor:
    z = torch.view_as_complex(h.view(4, 8, 2)) * torch.polar(torch.ones(8), torch.arange(8) * 0.1)
    z = z @ torch.full((8, 16), 1 + 2j) + torch.zeros(16, dtype=torch.complex64)
    return (z @ torch.ones(16, 16, dtype=torch.cfloat)).imag + z.real


@kind
def bits(s: Any, h: Tensor) -> Tensor:
    """What looks at the bits of a number does so at its own type."""
    return h * (h.detach().view(torch.int32) < 0)


@kind
def without_autocast(s: Any, h: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return s.c(h.float() @ torch.eye(16))


class Made(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.make = KINDS[kind]
        self.a, self.c, self.b = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.b(self.make(self, self.a(x))).mean(0) - x.mean(0)).pow(2).mean()}


SPEC = """
mesh { dp = 2 tp = 2 }
input x : f32[4, 8] [dp, _]
param "a.weight" [tp, _]
param "b.weight" [_, tp]
"""


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_forward_makes_is_raised(kind: str) -> None:
    """Proven in float64, as the eager model computes it at its own dtype."""
    report = proof(lambda: Made(kind), SPEC)
    assert report.ok and report.eager is not None
    assert report.outputs["loss"] < 1e-12 and report.eager.outputs["loss"] < 1e-3
