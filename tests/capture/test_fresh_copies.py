"""Every load of a model has values and memory of its own, whatever its constructor makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shardlang
from shardlang.capture import CallableSource, load_plain, materialize
from shardlang.training.run import plain_trainee

SPEC = """
mesh { dp = 1 }
input x : f64[4] [dp]
optimizer sgd(lr = 0.1)
"""
SHARED = torch.tensor([0.5, -1.5], dtype=torch.float64)
GENERATOR = torch.Generator()


class Constants(nn.Module):
    """Parameters, buffers and tables from numbers, lists, NumPy and an earlier tensor."""

    n: Tensor
    shared: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.p = nn.Parameter(torch.from_numpy(np.array([3.0, -1.0])))
        self.wide = nn.Parameter(torch.tensor([0.25], dtype=torch.float64).expand(4))
        self.register_buffer("n", torch.tensor([5.0, 6.0], dtype=torch.float64))
        self.register_buffer("shared", SHARED)
        self.register_buffer("steps", torch.tensor([1.0]), persistent=False)
        self.table = torch.tensor([1.0, 2.0, 4.0, -3.0], dtype=torch.float64)
        self.rows = torch.tensor([[0.5], [0.25]], dtype=torch.float64).expand(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        self.shared.mul_(2)
        self.steps += 1
        there = (x * self.t * self.table * self.wide + self.rows).square().mean()
        return there + self.n.mean() * self.p.sum() + self.shared.sum() + self.steps.sum()


class Draws(nn.Module):
    """Tables and numbers that no state dict holds, and a parameter from a generator of its own."""

    def __init__(self, seed: int | None = 5) -> None:
        super().__init__()
        own = GENERATOR if seed is None else torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.empty(4, dtype=torch.float64).normal_(generator=own))
        self.table, self.number = torch.rand(4), float(np.random.rand())
        self.late = torch.rand(4, generator=own)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.a * self.table * self.number + self.late).square().mean()


ONCE = Constants()
BUILDS: dict[str, Callable[[], nn.Module] | nn.Module] = {
    "class": Constants,
    "one model": lambda: ONCE,
    "module": Constants(),
}


def program(model: nn.Module | Callable[[], nn.Module], folder: Path) -> shardlang.Program:
    (folder / "a.shard").write_text(SPEC)
    return shardlang.compile(folder / "a.shard", model=model)


def values(module: nn.Module) -> dict[str, list[float]]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: x.detach().flatten().tolist() for name, x in named}


def trained(module: nn.Module) -> float:
    """Two steps, by which every parameter and buffer changes; the first loss."""
    losses = []
    for _ in range(2):
        losses.append(module(torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)))
        losses[-1].backward()
        with torch.no_grad():
            for param in module.parameters():
                param.sub_(param.grad)
    return losses[0].item()


@pytest.mark.parametrize("name", BUILDS)
def test_loads_share_nothing(name: str, tmp_path: Path) -> None:
    handed = BUILDS[name]
    first = dict(values(Constants()), wide=[0.25] * 4)
    made = program(handed, tmp_path)
    want = trained(program(Constants, tmp_path).load())
    for _ in range(2):
        assert made.verify().ok
        module = made.load()
        assert first.items() <= values(module).items()
        assert trained(module) == want
        plain = plain_trainee(made.compiled, 0).module
        assert first.items() <= values(plain).items()
        assert trained(plain) == pytest.approx(want, abs=1e-12)
    assert SHARED.tolist() == [0.5, -1.5]
    if isinstance(handed, nn.Module):
        assert values(handed) == first


@pytest.mark.parametrize("seed", [5, None])
def test_draws_beside_the_state_dict_are_those_of_the_trace(
    seed: int | None, tmp_path: Path
) -> None:
    """Neither the proof nor the reference builds a model with other numbers than the traced one."""
    made = program(lambda: Draws(seed), tmp_path)
    report = made.verify()
    assert report.ok, report
    if seed is not None:
        x = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
        loaded, plain = made.load(seed=3), plain_trainee(made.compiled, 3).module
        torch.testing.assert_close(loaded(x), plain(x), rtol=0, atol=1e-12)
        assert torch.equal(loaded.a, Draws().a)


def test_a_generator_of_the_constructors_own_gives_the_same_each_time() -> None:
    class Recordable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            own = torch.Generator().manual_seed(3)
            self.a = nn.Parameter(torch.randn(4, generator=own))
            self.b = nn.Parameter(torch.randn(4, generator=own))

    source = CallableSource(Recordable)
    plain = Recordable()
    for _ in range(2):
        found = materialize(source, 1)
        assert torch.equal(found["a"], plain.a) and torch.equal(found["b"], plain.b)
        assert torch.equal(load_plain(source, 1).b, plain.b)
