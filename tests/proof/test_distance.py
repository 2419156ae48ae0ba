"""Differences of tensors: finite numbers by size, all others position by position."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shardlang.proof.distance import gap, norm, norm_gap, size
from shardlang.proof.prove import verify_compiled
from tests.commands import shardlang
from tests.proof.proving import codes, compiled

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [
        ([INF, 1.0], [INF, 3.0], 2.0),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([NAN, 1.0], [NAN, 1.5], 0.5),
        ([NAN, 1.0], [1.0, NAN], INF),
        ([NAN, 1.0], [INF, 1.0], INF),
        ([1.0, 2.0], [1.0, INF], INF),
        ([complex(NAN, 1.0)], [complex(NAN, 2.0)], 1.0),
        ([complex(INF, 1.0)], [complex(-INF, 1.0)], INF),
        ([1, 2], [1, 3], INF),
        ([1.0, 2.0], [1.0], INF),
    ],
)
def test_gaps(a: list[float], b: list[float], apart: float) -> None:
    assert gap(torch.tensor(a), torch.tensor(b)) == apart
    assert norm_gap(torch.tensor(a), torch.tensor(b)) == apart


def test_sizes_are_those_of_the_finite_numbers() -> None:
    assert size(torch.tensor([INF, -3.0, NAN])) == 3.0
    assert size(torch.tensor([complex(INF, -4.0)])) == 4.0
    assert norm(torch.tensor([3.0, INF, 4.0])) == 5.0
    assert size(torch.tensor([], dtype=torch.float64)) == size(torch.tensor([INF])) == 0.0


MASKED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 5)

    def forward(self, x):
        y = self.a(x)
        if FAULT and torch.compiler.is_exporting():
            y = 2 * y
        y = torch.cat([y, torch.full_like(y[:, :1], float("-inf"))], 1)
        return {"loss": self.a(x).square().mean(), "y": y}
"""
SPEC = """
mesh { dp = 2 tp = 2 }
model "model.py:Net"
input x : f32[7, 6] [dp, _]
param "a.weight" [tp, _]
"""


@pytest.mark.parametrize("fault", [False, True])
def test_an_infinity_hides_no_fault(tmp_path: Path, fault: bool) -> None:
    """An output that is infinite somewhere is compared everywhere else, and named."""
    done = compiled(tmp_path, MASKED.replace("FAULT", str(fault)), SPEC)
    report = verify_compiled(done)
    assert report.not_finite == {"outputs": ["y"], "gradients": []}
    assert report.ok == (not fault)
    assert codes(report, done) == ([("SH0506", "error")] if fault else [])
    assert "not finite outputs `y`, the same on both sides" in str(report)


LOSSES = {
    "nan": "(h - h).sum() / (h - h).sum()",
    "inf": "h.square().mean() / (h - h).sum().abs()",
    "-inf": "(h - h).sum().abs().log() + h.mean()",
}


@pytest.mark.parametrize("value", LOSSES)
def test_a_loss_that_is_not_finite_proves_nothing(tmp_path: Path, value: str) -> None:
    """It is not a fault of tracing either; under `--json` too there is one document."""
    forward = f"h = self.a(x)\n        return {{'loss': {LOSSES[value]}}}"
    model = MASKED[: MASKED.index("y = self.a(x)")] + forward + "\n"
    done = compiled(tmp_path, model, SPEC)
    report = verify_compiled(done)
    assert not report.ok and report.equal and report.traced_as_eager
    assert codes(report, done) == [("SH0510", "error")]
    assert report.to_json()["loss"]["reference"] == value
    (tmp_path / "case.shard").write_text(SPEC)
    status, out, _ = shardlang("verify", tmp_path / "case.shard", "--json")
    assert status == 1 and '"SH0510"' in out and '"not_finite": {"outputs": ["loss"]' in out


def test_undefined_gradients_are_named(tmp_path: Path) -> None:
    forward = "return {'loss': (self.a(x).relu() * 0).sqrt().sum() + self.a(x).sum()}"
    report = verify_compiled(
        compiled(tmp_path, MASKED[: MASKED.index("y = self.a(x)")] + forward + "\n", SPEC)
    )
    assert report.ok and report.not_finite["gradients"] == ["a.weight", "a.bias"]


def test_numbers_too_large_for_the_model_are_told(tmp_path: Path) -> None:
    """They are finite in float64, where the proof holds; the trace overflows as the model does."""
    large = "(self.a(x) + 200).exp()"
    forward = f"return {{'loss': self.a(x).square().mean(), 'y': {large} / (1 + {large})}}"
    model = MASKED[: MASKED.index("y = self.a(x)")] + forward + "\n"
    done = compiled(tmp_path, model, SPEC)
    report = verify_compiled(done)
    assert report.ok and codes(report, done) == [] and report.eager is not None
    assert [(each.name, each.kind) for each in report.eager.explained] == [("y", "overflow")]
    assert "`y` is not finite at the model's own dtype" in str(report)
