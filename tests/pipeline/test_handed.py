"""Gradients that no stage computes: those that one is given, and hands on as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shardlang.compiler.pipelined import pipelined
from shardlang.proof.prove import verify_compiled
from tests.pipeline.families import Family
from tests.pipeline.proving import compiled_family


class Weighing(nn.Module):
    """A layer that also makes a weight of parameters alone, which the next one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.p, self.q = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.layer(x)), self.p + self.q


class Weighed(nn.Module):
    """A layer that reads the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.layer(x)) * weight, weight


class Handing(nn.Module):
    """The gradient of `bias` is the cotangent of the loss, and those of `p` and `q` are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Weighing(), Weighed()])
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z, weight = x, x
        for layer in self.layers:
            z, weight = layer(z, weight)
        return {"loss": z.square().mean() + self.bias}


HANDING = Family("handing", Handing, "input x : f32[8, 4] [ROWS, _]", "")


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
@pytest.mark.parametrize("mesh", ["pp = 2", "pp = 2, dp = 2"])
def test_what_is_handed_through_is_proven(tmp_path: Path, mesh: str, schedule: str) -> None:
    report = verify_compiled(compiled_family(tmp_path, HANDING, mesh, schedule))
    assert report.ok, report
    assert report.accumulated and {"bias", "layers.0.p"} <= report.accumulated.keys()


def test_a_stage_gives_the_gradients_of_its_own_parameters(tmp_path: Path) -> None:
    step = pipelined(compiled_family(tmp_path, HANDING, "pp = 2", "1f1b")).step
    gives = [set(piece.gives) for piece in step.reduces]
    assert {"layers.0.p", "layers.0.q"} <= gives[0] and "bias" in gives[1]
    own = [{leaf.name for leaf in one.step.leaves} for one in step.stages]
    assert all(names <= held for names, held in zip(gives, own, strict=True))
