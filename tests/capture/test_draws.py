"""Random calls: traced as they draw in the model, whatever the order of memory and the spelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shardlang.capture import CaptureError
from tests.capture.compare import capture_plain, run_both
from tests.capture.proofs import proof

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "permuted": lambda y: y.permute(2, 0, 1),
    "gaps": lambda y: y.transpose(0, -1)[:, 1:],
    "copied": lambda y: y.transpose(0, 1).contiguous()[:, 1:],
    "repeated": lambda y: y.transpose(0, 1).unsqueeze(0).expand(2, *y.transpose(0, 1).shape),
    "channels_last": lambda y: y[..., None].to(memory_format=torch.channels_last),
}
DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda y: F.dropout(y, 0.3, True),
    "alpha_dropout": lambda y: F.alpha_dropout(y, 0.3, True),
    "rrelu": lambda y: F.rrelu(y, training=True),
    "randint_like": lambda y: y * torch.randint_like(y, 7),
    "rand_like": lambda y: y * torch.rand_like(y, memory_format=torch.preserve_format),
    "bernoulli": lambda y: y * torch.bernoulli(y.sigmoid()),
    "bernoulli_": lambda y: y * torch.empty_like(y).bernoulli_(),
    "bernoulli_by": lambda y: y * torch.empty_like(y).bernoulli_(y.detach().sigmoid()),
    "normal_": lambda y: y * torch.empty_like(y).normal_(1, 2),
    "normal_gaps": lambda y: y * torch.cat([y.detach()] * 2, -1)[..., : y.shape[-1]].normal_(),
    "exponential_": lambda y: y * torch.empty_like(y).exponential_(),
    "multinomial": lambda y: y * y.detach().abs().flatten(1).add(0.1).multinomial(3).float().mean(),
}


class Draws(nn.Module):
    """All kinds of draws for one view of a scaled input."""

    def __init__(self, view: str) -> None:
        super().__init__()
        self.view, self.scale = VIEWS[view], nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.view(x * self.scale)
        return {name: draw(y) for name, draw in DRAWS.items()}


@pytest.mark.parametrize("view", VIEWS)
def test_draws_are_those_of_one_device(view: str) -> None:
    """Of the eager model at its own dtype, and the same on a mesh that splits a dim."""
    report = proof(lambda: Draws(view), "mesh { b = 2 }\ninput x : f32[4, 6, 5] [_, b, _]")
    assert report.ok and report.eager is not None
    assert set(report.outputs) == set(DRAWS)
    assert max(report.outputs.values()) < 1e-9 and max(report.eager.outputs.values()) < 1e-5


def same_generator(self: Any, x: Tensor) -> Any:
    """The overloads with a generator, which is the global one."""
    h = self.lin(x)
    h = h + torch.randn(8, 6, generator=None) * torch.rand(8, 6, generator=None)
    h = h * torch.randint(3, (8, 6), generator=None) + torch.randint(1, 4, (8, 6), generator=None)
    h = h[torch.randperm(8, generator=None)] + torch.rand_like(h, generator=None)
    h = h * torch.randint_like(h, 5, generator=None) + torch.randint_like(h, 1, 5, generator=None)
    h = h * torch.bernoulli(h.sigmoid(), generator=None) + torch.normal(0.0, 1.0, (8, 6))
    return (h * torch.empty_like(h).normal_(generator=None).uniform_(generator=None)).sum()


def own_generator(self: Any, x: Tensor) -> Any:
    return (x + torch.randn(8, 6, generator=self.source)).sum()


def test_no_generator_is_the_global_one() -> None:
    source, captured, specs = capture_plain(same_generator)
    assert run_both(source, captured, specs).error() == 0.0


def test_a_generator_of_its_own_is_refused() -> None:
    with pytest.raises(CaptureError, match="draws from a generator of its own") as found:
        capture_plain(own_generator, source=torch.Generator)
    assert found.value.code == "SH0358" and "test_draws.py" in found.value.source


def seeds(self: Any, x: Tensor) -> Any:
    torch.manual_seed(0)
    return (self.lin(x) * torch.rand(8, 6)).sum()


def forks(self: Any, x: Tensor) -> Any:
    with torch.random.fork_rng():
        noise = torch.randn(8, 6)
    return (self.lin(x) * noise).sum()


@pytest.mark.parametrize("forward", [seeds, forks])
def test_a_seed_in_the_forward_is_refused(forward: Callable[..., Any]) -> None:
    """The trace would draw from the generator as it stands."""
    with pytest.raises(CaptureError, match="seeds the random generator") as found:
        capture_plain(forward)
    assert found.value.code == "SH0358" and "test_draws.py" in found.value.source
