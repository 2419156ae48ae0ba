"""What a proof feeds the model, and what it says about the gradients that this reaches."""

from __future__ import annotations

from pathlib import Path

import pytest

import shardlang
from shardlang.compiler.driver import CompileError
from tests.commands import document
from tests.proof.proving import compiled, proof

MODEL = """
class Net(nn.Module):
    '''Rows of one token take features; some labels are ignored; targets are probabilities.'''

    def __init__(self, drops=0.0):
        super().__init__()
        self.words, self.picture = nn.Embedding(9, 6), nn.Linear(4, 6)
        self.out, self.spare = nn.Linear(6, 1), nn.Parameter(torch.ones(3))
        self.register_parameter("never", nn.Parameter(torch.ones(2)))

    def forward(self, ids, features, target):
        is_picture = (ids == 700)[..., None]
        h = torch.where(is_picture, self.picture(features), self.words(ids % 9))
        given = self.out(h).sigmoid()[..., 0] + 0 * self.spare.sum()
        return {"loss": F.binary_cross_entropy(given, target)}
"""
BATCHES = """

def batches(seed):
    g = torch.Generator().manual_seed(seed)
    while True:
        ids = torch.randint(9, (4, 5), generator=g)
        ids[:, 1] = 700
        yield {
            "ids": ids,
            "features": torch.randn(4, 5, 4, generator=g),
            "target": torch.rand(4, 5, generator=g),
        }
"""
SPEC = """
mesh { dp = 2 tp = 2 }
model "model.py:Net"
input ids      : i64[4, 5]    [dp, _]
input features : f32[4, 5, 4] [dp, _, _]
input target   : f32[4, 5]    [dp, _]
param "picture.weight" [tp, _]
"""


def test_own_batches_reach_what_random_numbers_do_not(tmp_path: Path) -> None:
    report = proof(tmp_path, MODEL + BATCHES, SPEC)
    assert report.ok and str(report.inputs) == "the model's own batches"
    assert (report.zero, report.unused) == (["spare"], ["never"])
    text = str(report)
    assert "  zero       everywhere: the gradients of `spare`" in text
    assert "  unused     no gradient reaches 1, `never`" in text
    found = document("verify", _written(tmp_path))
    assert found["inputs"] == {"source": "batches", "note": ""}
    assert found["gradients"]["zero"] == ["spare"] and found["gradients"]["unused"] == ["never"]


def _written(folder: Path) -> Path:
    (folder / "case.shard").write_text(SPEC)
    return folder / "case.shard"


def test_random_inputs_say_what_they_do_not_reach(tmp_path: Path) -> None:
    model = MODEL.replace("target)}", "target.sigmoid())}")
    report = proof(tmp_path, model, SPEC)
    assert report.ok and str(report.inputs) == "random"
    assert set(report.zero) == {"picture.weight", "picture.bias", "spare"}


def test_a_model_that_random_inputs_do_not_suit_is_told_of_batches(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        proof(tmp_path, MODEL, SPEC)
    (finding,) = caught.value.diagnostics
    assert finding.code == "SH0355" and finding.span.file.endswith("model.py")
    assert "batches(seed)" in (finding.help or "")


OWN_NORM = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))
    def forward(self, x):
        y = F.batch_norm(x, self.mean, self.var, self.weight, self.weight)
        return {"loss": y.float().square().mean()}
"""


def test_a_model_that_casts_do_not_suit_is_told_of_buffers(tmp_path: Path) -> None:
    spec = 'mesh { dp = 2 }\nmodel "model.py:Net"\ninput x : f32[6, 4] [dp, _]\n'
    with pytest.raises(CompileError) as caught:
        proof(tmp_path, OWN_NORM, spec + "precision { compute = bf16 }\n")
    (finding,) = caught.value.diagnostics
    assert finding.code == "SH0355" and "fails on real tensors" in finding.message
    assert "parameters and inputs are cast and buffers are not" in (finding.help or "")


MISFITS = {
    "shape": ("torch.rand(4, 5, generator=g)", "torch.rand(3, 5)", "`target` is f32[3, 5], not"),
    "dtype": ("torch.rand(4, 5, generator=g)", "torch.rand(4, 5).double()", "`target` is f64"),
    "name": ('"target": ', '"targets": ', "there is no `target`"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_batch_that_does_not_fit_is_not_taken(tmp_path: Path, kind: str) -> None:
    old, new, says = MISFITS[kind]
    model = MODEL.replace("target)}", "target.sigmoid())}") + BATCHES.replace(old, new)
    report = proof(tmp_path, model, SPEC)
    assert not report.inputs.own and report.inputs.note.startswith(says)
    assert f"  inputs     random: {says}" in str(report)


def test_what_the_spec_does_not_declare_is_named(tmp_path: Path) -> None:
    extra = BATCHES.replace('"ids": ids,', '"ids": ids, "mask": ids > 2,')
    report = proof(tmp_path, MODEL + extra, SPEC)
    assert report.inputs.own and report.inputs.note == "without `mask`, not declared in the spec"


def test_batches_that_fail_are_one_finding(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        proof(tmp_path, MODEL + "\ndef batches(seed):\n    yield {'ids': 1 / 0}\n", SPEC)
    (finding,) = caught.value.diagnostics
    assert finding.code == "SH0350" and "`batches` fails: ZeroDivisionError" in finding.message


def test_a_program_reports_what_the_command_does(tmp_path: Path) -> None:
    done = compiled(tmp_path, MODEL + BATCHES, SPEC)
    report = shardlang.Program(done).verify()
    found = document("verify", _written(tmp_path))
    assert report.to_json().items() <= found.items()
    assert repr(report).startswith("<Report: proven equal on 4 simulated devices, in float64; outp")


def test_in_evaluation_mode_no_gradient_is_compared_and_the_report_says_so(tmp_path: Path) -> None:
    text = SPEC.replace('Net"', 'Net"(mode = "eval")')
    report = proof(tmp_path, MODEL + BATCHES, text)
    assert report.ok and report.gradients is None
    assert report.to_json()["not_compared"] == "the model is in evaluation mode"
    assert "  gradients  not compared: the model is in evaluation mode" in str(report)
    assert "not compared: the model is in evaluation mode" in repr(report)
