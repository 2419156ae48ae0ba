"""The untouched model against the reference: outputs, changed buffers and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shardlang.compiler.driver import compile_spec
from shardlang.proof.prove import verify_compiled
from shardlang.proof.report import Report
from shardlang.spec import load_spec_text

MODEL = """
import torch
from torch import nn

class Gate(nn.Module):
    def __init__(self, detaches=False, drops=0.0, norm=False):
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)
        self.norm = nn.BatchNorm1d(10) if norm else nn.Identity()
        self.dropout, self.detaches = nn.Dropout(drops), detaches

    def forward(self, x):
        h = self.dropout(self.norm(self.up(x)).tanh())
        if self.detaches and torch.compiler.is_compiling():
            h = h.detach()
        return {"loss": self.down(h).pow(2).mean()}
"""
SPEC = """
mesh {{ dp = 2 tp = 2 }}
model "model.py:Gate"({arguments})
input x : {dtype}[7, 6] [dp, _]
param "up.{{weight,bias}}" [tp, ...]
"""


PLAIN = ["", "drops = 0.3", "norm = true", "drops = 0.3, norm = true"]


def proof(folder: Path, arguments: str, dtype: str = "f32") -> Report:
    (folder / "model.py").write_text(MODEL)
    text = SPEC.format(arguments=arguments, dtype=dtype)
    spec, found = load_spec_text(text, str(folder / "gate.shard"))
    assert spec is not None, found
    return verify_compiled(compile_spec(spec))


def test_gradients_that_tracing_changes_are_found(tmp_path: Path) -> None:
    """The outputs agree, the gradients of what is detached do not."""
    report = proof(tmp_path, "detaches = true")
    assert report.eager is not None and report.eager.gradients is not None
    assert not report.ok and not report.traced_as_eager
    assert max(report.eager.outputs.values()) < 1e-6
    wrong = {name for name, error in report.eager.gradients.items() if error > 0.5}
    assert wrong == {"up.weight", "up.bias"}


@pytest.mark.parametrize("arguments", PLAIN)
def test_a_model_is_its_trace(tmp_path: Path, arguments: str) -> None:
    """Random models too: they are compared at their own dtype, with the same draws."""
    report = proof(tmp_path, arguments)
    assert report.ok and report.eager is not None and report.eager.gradients is not None
    assert ("norm.running_mean" in report.eager.outputs) == ("norm" in arguments)
    assert max(report.eager.outputs.values()) < 1e-5
    assert max(report.eager.gradients.values()) < 1e-3  # that of a bias before a norm is rounding
    assert set(report.eager.gradients) >= {"up.weight", "up.bias", "down.weight", "down.bias"}


ROUGH = ".pow(2).mean() + 1e-6 * self.down(h).mul(1e7).sin().mean()"


def test_gradients_of_rounding_are_those_of_the_trace(tmp_path: Path) -> None:
    """Where those of float32 are far from float64, the trace at float32 has them."""
    (tmp_path / "model.py").write_text(MODEL.replace(".pow(2).mean()", ROUGH))
    spec, found = load_spec_text(
        SPEC.format(arguments="", dtype="f32"), str(tmp_path / "gate.shard")
    )
    assert spec is not None, found
    report = verify_compiled(compile_spec(spec))
    assert report.traced_as_eager and report.eager is not None
    assert max(report.eager.outputs.values()) < 1e-4


def test_outputs_far_from_float64_are_explained_by_rounding(tmp_path: Path) -> None:
    """The trace at float32 has them, and a perturbation of that size makes as much of them."""
    (tmp_path / "model.py").write_text(MODEL.replace(".pow(2).mean()", ".mul(1e7).sin().mean()"))
    spec, found = load_spec_text(
        SPEC.format(arguments="", dtype="f32"), str(tmp_path / "gate.shard")
    )
    assert spec is not None, found
    report = verify_compiled(compile_spec(spec))
    assert report.traced_as_eager and report.eager is not None
    (loss,) = report.eager.explained
    assert report.eager.outputs["loss"] > report.eager.tolerance
    assert (loss.name, loss.kind) == ("loss", "ill-conditioned")
    assert loss.perturbation == torch.finfo(torch.float32).eps and loss.amplification > 1e6
