"""Attention by the kernels that the plain model takes: bit for bit, op by op and compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from called import Pair
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from shardlang.ir.step import has_records
from shardlang.runtime.module import held
from shardlang.vjp.at_device import written_for
from shardlang.vjp.kernels import aligned, in_rows
from tests.cost.measured import step_of

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
BAND = (torch.arange(7)[:, None] - torch.arange(7)[None]).abs() < 4


def spread(x: Tensor) -> Tensor:
    """One key head for each query head."""
    return x.repeat_interleave(2, 1)


def turned(x: Tensor) -> Tensor:
    """The same values with the last two dims turned in memory."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


ATTEND: dict[str, Attend] = {
    "causal, key heads shared": lambda q, k, v, bias: F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=0.3, enable_gqa=True
    ),
    "a mask": lambda q, k, v, bias: F.scaled_dot_product_attention(q, spread(k), spread(v), BAND),
    "a bias with a gradient": lambda q, k, v, bias: F.scaled_dot_product_attention(
        q, spread(k), spread(v), bias
    ),
    "one head": lambda q, k, v, bias: F.scaled_dot_product_attention(q[:, 0], k[:, 0], v[:, 0]),
    "narrow values": lambda q, k, v, bias: F.scaled_dot_product_attention(
        q, spread(k), spread(v)[..., :3]
    ),
}


class Heads(nn.Module):
    """Four query heads, two key heads, and a bias of the scores."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.q, self.k, self.v = nn.Linear(24, 24), nn.Linear(24, 12), nn.Linear(24, 12)
        self.bias = nn.Parameter(torch.linspace(-1, 2, 196).sin().view(4, 7, 7))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `b s m`."""
        parts = (one(x).unflatten(-1, (-1, 6)).transpose(1, 2) for one in (self.q, self.k, self.v))
        made = self.attend(*parts, self.bias)
        return {"loss": made.square().mean() + self.bias.mean(), "made": made}


SPEC = "mesh {{ d = {n} }}\ninput x : f64[3, 7, 24] [d, _, _]\nloss loss\n"
X = {"x": torch.linspace(-2, 3, 504, dtype=torch.float64).sin().mul(2).view(3, 7, 24)}


@pytest.mark.parametrize("name", ATTEND)
def test_every_bit_is_that_of_the_plain_model(name: str) -> None:
    pair = Pair(SPEC, lambda: Heads(ATTEND[name]))
    assert pair.step(X) == 0
    with sdpa_kernel(SDPBackend.MATH):
        assert pair.step(X) == 0
    step = step_of(pair.program)
    assert has_records(step)
    assert not has_records(written_for(step, {"d": 0}, torch.device("cpu")))


def all_of_them(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Every attention, and one whose operands lie otherwise in memory."""
    others = [attend(q, k, v, bias).mean() for attend in ATTEND.values()]
    made = F.scaled_dot_product_attention(turned(q), spread(k), turned(spread(v)))
    return made * torch.stack(others).sum()


def test_a_compiled_step_has_no_cut_at_an_attention() -> None:
    pair = Pair(SPEC, lambda: Heads(all_of_them))
    pair.run = torch.compile(pair.module, backend="aot_eager")
    assert pair.step(X) < 1e-12
    ((_, regions),) = held(pair.module).backends._others
    assert (regions.sites, regions.compiled) == (2, 2)


def test_the_kernels_are_those_that_are_allowed_in_the_forward() -> None:
    """A backward takes the kernel of its forward, whatever is allowed then."""
    pair = Pair(SPEC, lambda: Heads(ATTEND["a mask"]))
    for module in pair.both():
        with sdpa_kernel(SDPBackend.MATH):
            loss = module(**pair.module.shard_inputs(**X))["loss"]
        loss.backward()
    assert pair.gradients() == 0


def test_what_a_kernel_does_not_take_is_copied() -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    assert in_rows(x) is x
    assert in_rows(x.transpose(1, 2)).stride() == (12, 3, 1)
    mask = torch.arange(48.0).view(2, 3, 8)
    assert aligned(mask) is mask
    assert aligned(mask.expand(5, 2, 3, 8)[0]).stride() == (24, 8, 1)
    for odd in (x, mask[..., 1:6], mask.transpose(1, 2)):
        made = aligned(odd)
        assert torch.equal(made, odd)
        assert made.stride(-1) == 1
        assert not [stride for stride in made.stride()[:-1] if stride % 8]


class Outer(nn.Module):
    """The heads as a part, which is computed again."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.head = Heads(all_of_them), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `b s m`."""
        made = self.core(x)
        return {"loss": made["loss"] * self.head(made["made"]).square().mean()}


def test_what_is_computed_again_is_written_out_too() -> None:
    pair = Pair(SPEC + 'recompute "core"\n', Outer)
    assert pair.step(X) < 1e-12
    step = step_of(pair.program)
    assert len([one for one in step.again if one.endswith("recorded")]) == 6
    assert not has_records(written_for(step, {"d": 0}, torch.device("cpu")))
