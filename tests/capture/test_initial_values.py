"""Initial weights are the ones that the constructor draws under `torch.manual_seed(seed)`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shardlang.capture import CallableSource, load_plain, materialize
from shardlang.capture.deferred import state
from tests.zoo import FAMILIES


def own(build: Callable[[], nn.Module], seed: int) -> dict[str, torch.Tensor]:
    """The weights of a model that is built as its owner would build it."""
    torch.manual_seed(seed)
    return dict(state(build()))


def check(build: Callable[[], nn.Module], seed: int = 5) -> None:
    """Compare bit for bit, whole and in parts; the constructor is recorded."""
    wanted, source = own(build, seed), CallableSource(build)
    torch.manual_seed(12)
    before = torch.random.get_rng_state()
    values = materialize(source, seed)
    assert source.deferred.recorded, source.deferred.reason
    assert torch.equal(before, torch.random.get_rng_state())
    assert values.keys() == wanted.keys()
    for name, value in wanted.items():
        assert values[name].dtype == value.dtype
        assert torch.equal(values[name], value), name
    plain = dict(state(load_plain(source, seed)))
    assert all(torch.equal(plain[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_models_of_transformers(family: Any, tmp_path: Path) -> None:
    source = family.source(tmp_path)
    values = materialize(source, 5)
    for name, value in own(source.build, 5).items():
        assert torch.equal(values[name], value), name


class Many(nn.Module):
    """Draws of all kinds: small and large ones, overwritten ones, of what was drawn before."""

    def __init__(self) -> None:
        super().__init__()
        self.later = nn.Parameter(torch.empty(3, 17))
        self.up, self.down = nn.Linear(5, 7), nn.Linear(7, 3)
        self.few = nn.Parameter(torch.randn(3))
        self.table = nn.Embedding(9, 4, padding_idx=1)
        self.order = nn.Parameter(torch.rand(3) * torch.randperm(3))
        self.events = nn.Parameter(torch.poisson(torch.rand(20) * 9))
        self.register_buffer("chosen", torch.multinomial(torch.rand(20), 6))
        self.turned = nn.Parameter(torch.empty(4, 5).t())
        nn.init.orthogonal_(self.turned)
        nn.init.trunc_normal_(self.down.weight, std=2.0)
        self.rate = nn.Parameter(torch.empty(4).exponential_())
        self.mask = nn.Parameter(torch.empty(11).bernoulli_(torch.rand(11)))
        self.copied = nn.Parameter(self.up.weight.detach().clone())
        nn.init.normal_(self.up.weight, std=0.1)
        nn.init.xavier_normal_(self.later)


def test_all_kinds_of_draws() -> None:
    check(Many)
    check(Many, 6)


def test_factories_make_the_default_type_of_the_constructor() -> None:
    def build() -> nn.Module:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = nn.Linear(5, 3)
            model.ones, model.drawn = nn.Parameter(torch.ones(3)), nn.Parameter(torch.randn(20))
            model.third = nn.Parameter(torch.arange(4) / 3)
            return model
        finally:
            torch.set_default_dtype(before)

    check(build)
    assert torch.get_default_dtype() is torch.float32


def test_seeds_may_alternate() -> None:
    source = CallableSource(Many)
    found = [materialize(source, seed)["later"] for seed in (1, 2, 1)]
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


@pytest.mark.parametrize("looks", [False, True])
def test_a_look_at_data_changes_nothing(looks: bool) -> None:
    """A constructor that cannot be recorded gives the same weights as one that can."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(5, 7), nn.Linear(7, 3)
            self.seen = self.up.weight.max().item() if looks else 0.0

    source = CallableSource(Model)
    assert source.deferred.recorded != looks
    values, wanted = materialize(source, 3), own(Model, 3)
    assert all(torch.equal(values[name], wanted[name]) for name in wanted)


def test_draws_into_a_tensor_that_holds_data_are_not_lost() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.arange(6.0).uniform_())
            self.up = nn.Linear(5, 7)

    values, wanted = materialize(CallableSource(Model), 3), own(Model, 3)
    assert all(torch.equal(values[name], wanted[name]) for name in wanted)


_LAYERS = """
import resource, torch
from torch import nn
from shardlang.capture import CallableSource, materialize

source = CallableSource(lambda: nn.Sequential(*[nn.Linear(3000, 3000) for _ in range(12)]))
assert source.deferred.recorded
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
materialize(source, 3, lambda name, tensor: tensor[:1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_model_is_never_held_whole() -> None:
    """Shards of a model of 430 MB take the memory of a few layers, whose draws are passed by."""
    done = subprocess.run(
        [sys.executable, "-c", _LAYERS], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 120 * 1024
