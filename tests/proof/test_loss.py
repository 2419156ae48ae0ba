"""Which result is the loss, and one message where it trains nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.compiler.driver import CompileError
from tests.proof.proving import compiled, proof

MODEL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x):
        y = self.a(x)
        return {RESULT}
"""
SPEC = """
mesh { dp = 2 }
model "model.py:Net"
input x : f32[6, 6] [dp, _]
"""
STATISTICS = {
    "of the input": '"y": y, "level": x.abs().mean()',
    "detached": '"y": y, "level": y.detach().abs().mean()',
    "under no_grad": '"y": y, "level": torch.no_grad()(lambda: y.abs().mean())()',
    "counted": '"y": y, "level": (y > 0).float().mean()',
}


@pytest.mark.parametrize("kind", STATISTICS)
def test_a_statistic_without_gradient_is_no_loss(tmp_path: Path, kind: str) -> None:
    """Gradients start from the outputs that carry one."""
    report = proof(tmp_path, MODEL.replace("RESULT", STATISTICS[kind]), SPEC)
    assert report.ok and report.loss is None and report.gradients is not None
    assert set(report.gradients) == {"a.weight", "a.bias"}


def test_the_only_scalar_with_a_gradient_is_the_loss(tmp_path: Path) -> None:
    result = '"level": x.abs().mean(), "mean": y.square().mean()'
    done = compiled(tmp_path, MODEL.replace("RESULT", result), SPEC)
    assert done.program.loss == "mean"


@pytest.mark.parametrize("stated", ["", "loss level\n"])
def test_a_loss_that_trains_nothing_is_one_error(tmp_path: Path, stated: str) -> None:
    name = "level" if stated else "loss"
    with pytest.raises(CompileError) as caught:
        compiled(tmp_path, MODEL.replace("RESULT", f'"y": y, "{name}": x.mean()'), SPEC + stated)
    (finding,) = caught.value.diagnostics
    assert finding.code == "SH0511" and f"`{name}`" in finding.message and finding.help
    assert finding.span.line == (5 if stated else 3)


def test_in_evaluation_it_is_allowed(tmp_path: Path) -> None:
    text = SPEC.replace('Net"', 'Net"(mode = "eval")')
    report = proof(tmp_path, MODEL.replace("RESULT", '"y": y, "loss": x.mean()'), text)
    assert report.ok and report.loss is not None
