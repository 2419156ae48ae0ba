"""What rounding explains is not a fault, and what it does not explain is one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from shardlang.passes.invariants.invariant import Verifier
from shardlang.proof.differences import TOLERANCE
from shardlang.proof.prove import verify_compiled
from shardlang.rules.registry import RULES
from tests.broad import broad
from tests.proof.proving import codes, compiled

SPEC = """
mesh {{ dp = 2 tp = 2 }}
model "model.py:Net"{arguments}
input {inputs} : f32[7, 6, 6] [dp, _, _]
param "{{a,b}}.{{weight,bias}}" [tp, ...]
"""
STEEP = """
class Net(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.a, self.by = nn.Linear(6, 6), by

    def forward(self, x):
        return {"loss": (self.by * self.a(x)).sin().mean()}
"""
GATES = """
class Net(nn.Module):
    '''Exponential gates with a running maximum and a signed normalizer, as xLSTM has.'''

    def __init__(self, by):
        super().__init__()
        self.a, self.b, self.by = nn.Linear(6, 24), nn.Linear(6, 24), by

    def forward(self, x):
        h = c = n = m = x.new_zeros(x.shape[0], 6)
        for i in range(26):
            z, gate, forget, o = (self.a(x[:, i % 6]) + self.b(self.by * h)).chunk(4, -1)
            top = torch.maximum(forget + m, gate)
            gate, forget, m = (gate - top).exp(), (forget + m - top).exp(), top
            c, n = forget * c + gate * z * o, forget * n + gate * o
            h = c / n
        return {"loss": h.square().mean(), "h": h}
"""


def spec(arguments: str = "", inputs: str = "x") -> str:
    return SPEC.format(arguments=arguments, inputs=inputs)


def split_sums(by: str) -> str:
    """A spec that adds every sum of a product in another order than one device does."""
    text = SPEC.format(arguments=f"(by = {by})", inputs="x")
    return text.replace("[tp, ...]", "[_, tp]").replace(".{weight,bias}", ".weight")


def break_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the bias of `linear` for one that each device of a contraction adds, and leave checks
    to the numbers alone."""
    linear = torch.ops.aten.linear.default
    wrong = dataclasses.replace(RULES[linear], spec="b... i, o j, +o? -> b... o")
    monkeypatch.setitem(RULES, linear, wrong)
    monkeypatch.setattr(Verifier, "passed", lambda *given: None)


@pytest.mark.parametrize(("by", "severity"), [(2e8, "warning"), (1e14, "error")])
def test_ill_conditioned_is_its_own_finding(tmp_path: Path, by: float, severity: str) -> None:
    """With the measured figures; an error where a fault of that size could hide."""
    done = compiled(tmp_path, STEEP, split_sums(f"{by:.0f}"))
    report = verify_compiled(done)
    assert max(report.outputs.values()) > TOLERANCE
    assert codes(report, done) == [("SH0509", severity)]
    assert report.ok == (severity == "warning")
    (loss,) = [each for each in report.explained if each.name == "loss"]
    assert loss.perturbation == torch.finfo(torch.float64).eps
    assert by / 10 < loss.amplification < 100 * by
    assert math.isclose(loss.change, loss.amplification * loss.perturbation)


@broad
def test_a_recurrence_of_exponential_gates_that_amplifies(tmp_path: Path) -> None:
    done = compiled(tmp_path, GATES, split_sums("1.4"))
    report = verify_compiled(done)
    assert max((report.gradients or {}).values()) > TOLERANCE
    assert codes(report, done) == [("SH0509", "warning")] and report.ok


@pytest.mark.parametrize(("model", "by"), [(STEEP, "200000000"), (GATES, "1.4")])
def test_a_wrong_rule_is_found_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, by: str
) -> None:
    break_linear(monkeypatch)
    done = compiled(tmp_path, model, split_sums(by))
    report = verify_compiled(done)
    assert not report.ok and ("SH0506", "error") in codes(report, done)
    assert report.first is not None and report.first.name.startswith("linear")


ZERO = {
    "all of a softmax": "p = self.a(x).softmax(-1); loss = p.sum(-1).mean()",
    "less its value": "p = self.a(x).softmax(-1); loss = p.sum() - 42",
    "a shift": "self.a.weight.requires_grad_(False); self.a.bias.requires_grad_(False);"
    " loss = ((self.a(x) + self.shift).softmax(-1) - y).square().mean()",
    "a bias before a norm": "h = self.a(x); h = F.batch_norm(h.flatten(0, 1), None, None,"
    " training=True); loss = h.sin().square().mean()",
    "any scale": "h = self.a(x); loss = F.normalize(h, dim=-1).square().sum()",
}
NETS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.shift = nn.Parameter(torch.ones(1))
        BEFORE

    def forward(self, x, y):
        STATEMENTS
        return {"loss": loss}
"""


@pytest.mark.parametrize("kind", ZERO)
def test_a_gradient_of_zero_in_mathematics_is_no_fault(tmp_path: Path, kind: str) -> None:
    """It is measured by the terms that cancel, on both sides."""
    frozen, apart, rest = ZERO[kind].rpartition("(False);")
    model = NETS.replace("BEFORE", frozen + apart.rstrip(";")).replace("STATEMENTS", rest.strip())
    done = compiled(tmp_path, model, spec(inputs="x, y").replace("{a,b}", "a"))
    report = verify_compiled(done)
    assert codes(report, done) == [] and report.ok, report
    assert max((report.gradients or {}).values()) < TOLERANCE


CAST = """
class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(6, 6), nn.Linear(6, 6), kind

    def forward(self, x, y):
        h = self.a(x)
        kind = getattr(torch, self.kind)
        h = h.to(kind) @ self.b.weight.to(kind)
        fine = self.a(y)
        if FAULT and torch.compiler.is_exporting():
            fine = fine * 1.01
        return {"loss": (h.float() - y).square().mean(), "h": h, "fine": fine}
"""


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64"])
def test_tolerances_follow_the_dtypes_inside(tmp_path: Path, kind: str) -> None:
    text = spec(f'(kind = "{kind}")', "x, y")
    done = compiled(tmp_path, CAST.replace("FAULT", "False"), text)
    report = verify_compiled(done)
    assert report.ok and codes(report, done) == []
    assert report.eager is not None and report.eager.tolerances["fine"] < 0.01
    assert report.eager.tolerances["h"] == (report.eager.tolerances["fine"] if kind == "float64"
                                            else 0.2)  # fmt: skip


def test_an_output_that_has_no_cast_on_its_way_keeps_its_tolerance(tmp_path: Path) -> None:
    text = spec('(kind = "bfloat16")', "x, y")
    done = compiled(tmp_path, CAST.replace("FAULT", "True"), text)
    assert codes(verify_compiled(done), done) == [("SH0506", "error")]
