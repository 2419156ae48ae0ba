"""What a model copies has memory of its own: optimizers, loops and the call may write the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shardlang
from shardlang.api import Program
from shardlang.runtime.written import write_all

SPEC = "mesh { d = 1 }\ninput x : f64[6, 4] [d, _]\nloss loss\n"


class Keeping(nn.Module):
    """Keeps what was there before: statistics, weights, inputs; and returns copies."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4), nn.Parameter(torch.arange(1.0, 5))
        for name, shape in {"mean": 4, "before": 4, "copied": 4, "last": (6, 4)}.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("anchor", torch.zeros(4, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `b h`."""
        old = self.mean.clone()
        self.before = self.mean.clone()
        self.copied.copy_(self.mean)
        y = (self.layer(x.clone()) * old).clone()
        with torch.no_grad():
            self.mean.mul_(0.9).add_(x.mean(0))
        loss = y.square().mean() + (self.layer.weight - self.anchor).square().sum()
        self.anchor, self.last = self.layer.weight.detach().clone(), x.clone()
        copies = {"y1": y * 1, "y2": y / 1, "x1": x.to(x.dtype, copy=True), "scale": self.scale * 1}
        down = torch.div(y, 1, rounding_mode="floor")
        return {"loss": loss + self.scale.sum(), "y": y, "old": old, "down": down * 1, **copies}


@pytest.fixture
def program(tmp_path: Path) -> Program:
    path = tmp_path / "spec.shard"
    path.write_text(SPEC)
    return shardlang.compile(path, model=lambda: Keeping().double())


def test_what_is_written_later_changes_no_copy(program: Program) -> None:
    assert program.verify().ok
    module, plain = program.load(), Keeping().double()
    plain.load_state_dict(module.state_dict())
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (module, plain)]
    for step in range(3):
        batch = torch.linspace(-2, 3, 24, dtype=torch.float64).add(step).sin().view(6, 4)
        given = batch.clone(), batch.clone()
        outputs = module(**module.shard_inputs(x=given[0])), plain(given[1])
        for made in outputs:
            made["loss"].backward()
            for name in ("y1", "y2", "x1", "scale"):
                made[name].detach().mul_(7)
        for name, want in outputs[1].items():
            torch.testing.assert_close(outputs[0][name], want, rtol=0, atol=1e-12)
        torch.testing.assert_close(*given, rtol=0, atol=0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for x in given:
            x.zero_()
        for name, want in plain.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], want, rtol=0, atol=1e-12)


def test_copies_that_no_result_needs_are_dropped(program: Program) -> None:
    """Of eleven, that of an operand, and that of what no other result has."""
    made = [node.target for node in program.compiled.program.graph.nodes]
    assert made.count(torch.ops.aten.clone.default) == 9


def test_tensors_that_are_swapped_are_read_first() -> None:
    one, other = torch.arange(3.0), torch.arange(3.0) * 5
    write_all([(one, other), (other, one)])
    assert (one.tolist(), other.tolist()) == ([0, 5, 10], [0, 1, 2])
