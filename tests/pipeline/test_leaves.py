"""Leaves that several stages read: inputs in a narrower type, and parameters that stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shardlang.compiler.driver import CompileError, compile_spec, module_source
from shardlang.compiler.in_stages import in_stages
from shardlang.compiler.pipelined import pipelined
from shardlang.proof.prove import verify_compiled
from shardlang.spec import load_spec
from tests.pipeline.families import Family
from tests.pipeline.proving import compiled_family


class Fed(nn.Module):
    """Every layer reads the input, and a scale that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 4), requires_grad=False)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        z = x
        for layer in self.layers:
            z = torch.tanh(layer(z)) * self.scale + x
        return {"loss": (z - y).float().square().mean()}


FED = Family("fed", Fed, "input x, y : f32[8, 4] [ROWS, _]", "")


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_every_stage_casts_the_inputs_that_it_reads(tmp_path: Path, schedule: str) -> None:
    narrow = "precision { compute = bf16 }"
    compiled = compiled_family(tmp_path, FED, "pp = 2, dp = 2", schedule, narrow)
    stages = pipelined(compiled).step.stages
    held = [{x.name for x in one.step.leaves if x.name not in one.values} for one in stages]
    assert [names & {"x", "y"} for names in held] == [{"x"}, {"x", "y"}]
    sent = [name for one in stages for name in one.values]
    assert sent and not [name for name in sent if "cast" in name]
    report = verify_compiled(compiled)
    assert report.ok, report


def test_a_frozen_parameter_of_several_stages_has_no_gradient(tmp_path: Path) -> None:
    compiled = compiled_family(tmp_path, FED, "pp = 2", "1f1b")
    assert pipelined(compiled).step.tied == {"scale@1": "scale"}
    report = verify_compiled(compiled)
    assert report.ok, report
    assert report.accumulated and "scale" not in report.accumulated


class Spare(nn.Module):
    """A module that is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x).square().mean()  # type: ignore[no-any-return]


def test_a_rank_that_loads_an_empty_stage_says_so(tmp_path: Path) -> None:
    """As a finding at the statement, not as an error of ours."""
    path = tmp_path / "spec.shard"
    path.write_text(
        "mesh { pp = 2 }\ninput x : f32[4, 4] [_, _]\n"
        'pipeline pp { split "layers" microbatches 2 }\n'
    )
    spec, _ = load_spec(path, {}, need_model=False)
    assert spec is not None
    compiled = compile_spec(spec, module_source(Spare))
    with pytest.raises(CompileError) as caught:
        in_stages(compiled)
    (found,) = caught.value.diagnostics
    assert (found.code, found.span.line) == ("SH0313", 3)
