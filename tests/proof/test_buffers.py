"""Written buffers that are stated sharded: proven, or refused if a device needs them whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardlang.compiler.driver import CompileError, compile_spec
from shardlang.proof.verify import verify
from shardlang.spec import Spec, load_spec_text

MODEL = """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 11)
        self.register_buffer("mean", torch.randn(11))

    def forward(self, x):
        y = self.up(x)
        {update}
        return (y - self.mean).square().sum()


def build():
    return Model()
"""
SPEC = """
mesh {{ {axis} }}
model "model.py:build"
input x : f32[7, 8] {layout}
buffer "mean" [a]
"""
BY_PARTS = {
    "in_place": "self.mean.lerp_(y.detach().mean(0), 0.1)",
    "from_the_neighbours": "self.mean.copy_(self.mean.roll(1) + y.detach().sum(0).flip(0))",
    "needs_a_norm": "self.mean = self.mean / (self.mean + y.detach().mean(0)).norm()",
}
BY_THE_WHOLE = {
    "sorted": "self.mean.copy_(torch.sort(self.mean + y.detach().mean(0)).values)",
    "a_part": "self.mean[:5] = y.detach().mean(0)[3:8]",
}


def case(update: str, axis: str, layout: str, folder: Path) -> Spec:
    """The spec of a model with one update."""
    (folder / "model.py").write_text(MODEL.replace("{update}", update))
    text = SPEC.format(axis=axis, layout=layout)
    spec, findings = load_spec_text(text, str(folder / "case.shard"))
    assert spec is not None, findings
    return spec


@pytest.mark.parametrize("layout", ["[a, _]", "[_, a]"])
@pytest.mark.parametrize("axis", ["a = 3", "a = 2 as data"])
@pytest.mark.parametrize("update", BY_PARTS)
def test_a_written_buffer_keeps_its_layout(
    update: str, axis: str, layout: str, tmp_path: Path
) -> None:
    done = compile_spec(case(BY_PARTS[update], axis, layout, tmp_path))
    (held,) = (leaf for leaf in done.program.leaves if leaf.name == "mean")
    assert str(held.layout.dims[0]) == "11@a"
    report = verify(done.captured, done.statements, done.source, done.inputs)
    assert report.ok
    assert "mean" in report.outputs


@pytest.mark.parametrize("update", BY_THE_WHOLE)
def test_an_update_that_gathers_the_buffer_is_refused(update: str, tmp_path: Path) -> None:
    with pytest.raises(CompileError) as raised:
        compile_spec(case(BY_THE_WHOLE[update], "a = 3", "[a, _]", tmp_path))
    (finding,) = raised.value.diagnostics
    assert finding.code == "SH0408"
    assert "`mean`, which is split over a" in finding.message
    assert finding.span.file.endswith("model.py")
