"""Parameters and buffers of every kind are drawn in their own, and never end a proof."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shardlang.proof.inputs import proof_inputs
from shardlang.proof.prove import verify_compiled
from shardlang.proof.values import all_values
from tests.proof.proving import codes, compiled, proof

MODEL = """
def held(kind):
    numbers = torch.randn((6, 5), generator=torch.Generator().manual_seed(3))
    if kind == "constant":
        return nn.Parameter(torch.zeros(6, 5, dtype=torch.int8), requires_grad=False)
    dtype = getattr(torch, kind)
    if dtype.is_complex:
        return nn.Parameter(torch.complex(numbers, numbers.flip(0)).to(dtype))
    if dtype.is_floating_point:
        return nn.Parameter(numbers.to(dtype), requires_grad=dtype.itemsize > 1)
    return nn.Parameter((20 * numbers).abs().to(dtype), requires_grad=False)


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.w, self.a = held(kind), nn.Linear(6, 6)
        self.scalar, self.none = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.zeros(0, 3, 4))
        self.seen = nn.Parameter(torch.ones(6))
        self.register_buffer("turn", torch.polar(torch.ones(6), torch.arange(6.0)))

    def forward(self, x):
        with torch.no_grad():
            x = x * self.seen.abs()
        h = self.a(x) * self.scalar + self.none.sum()
        h = torch.view_as_real(h * self.turn).sum(-1)
        y = torch.complex(h, h / 2) @ self.w if self.w.is_complex() else h @ self.w.to(h.dtype)
        return {"loss": y.abs().square().mean(), "y": y}


class Outputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = held("complex64")

    def forward(self, x):
        return torch.complex(x, x / 2) @ self.w.conj()
"""
SPEC = """
mesh { dp = 2 tp = 2 }
model "model.py:Net"(kind = "KIND")
input x : f32[5, 6] [dp, _]
param "a.weight" [tp, _]
"""
KINDS = [
    "complex64", "bool", "int8", "uint8", "int64", "constant",
    "float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float64",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_of_every_kind(tmp_path: Path, kind: str) -> None:
    done = compiled(tmp_path, MODEL, SPEC.replace("KIND", kind))
    report = verify_compiled(done)
    assert report.ok and codes(report, done) == []
    assert report.unused == ["seen"] and report.gradients is not None
    assert ("w" in report.gradients) == done.captured.leaf("w").trainable
    inputs, _ = proof_inputs(done.source, done.inputs, 0)
    drawn = all_values(done.captured, done.source, inputs, 0)
    assert len(set(drawn["w"].to(torch.complex128).flatten().tolist())) > 1
    if kind.startswith("complex"):
        assert drawn["w"].dtype is torch.complex128 and drawn["w"].imag.abs().min() > 0
    if kind in ("int8", "uint8", "int64"):
        first = done.source.deferred.value(done.source.deferred.module.w)
        assert drawn["w"].dtype is first.dtype
        assert first.min() <= drawn["w"].min() and drawn["w"].max() <= first.max()


def test_complex_outputs_get_complex_cotangents(tmp_path: Path) -> None:
    text = SPEC.replace('Net"(kind = "KIND")', 'Outputs"').replace('param "a.weight" [tp, _]', "")
    report = proof(tmp_path, MODEL, text)
    assert report.ok and report.gradients is not None and report.gradients["w"] < 1e-12
    assert report.eager is not None and report.eager.gradients is not None
    assert report.eager.gradients["w"] < 1e-5
