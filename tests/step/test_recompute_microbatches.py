"""`recompute to` of several microbatches: its budget is held against the peak of the whole step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import shardlang
from shardlang.compiler.driver import CompileError, compile_spec
from shardlang.plan.collect import plan_of
from shardlang.spec import load_spec
from tests.broad import sampled

MODEL = """
import torch
from torch import nn
class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 30), nn.Linear(30, 6)
    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(x)))
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return {"loss": torch.tanh(x).square().mean()}
"""
SPEC = """mesh {{ {mesh} }}
model "model.py:Net"
input x : f32[16, 20, 6] [{batch}, _, _]
{stated}
"""
WAYS = {
    "accumulate": ("dp = 2", "dp", "accumulate 4"),
    "stored": ("dp = 2", "dp", 'accumulate 4\nstore gradients "**" over dp'),
    "gpipe": ("pp = 2", "_", 'pipeline pp { split "layers" schedule gpipe microbatches 4 }'),
    "zbv": ("pp = 2", "_", 'pipeline pp { split "layers" schedule zbv microbatches 4 }'),
}


def program(folder: Path, way: str, recompute: str = "") -> shardlang.Program:
    """A spec of the model in one of the ways."""
    mesh, batch, stated = WAYS[way]
    (folder / "model.py").write_text(MODEL)
    (folder / "net.shard").write_text(
        SPEC.format(mesh=mesh, batch=batch, stated=f"{stated}\n{recompute}")
    )
    return shardlang.compile(folder / "net.shard")


def peak(made: shardlang.Program) -> int:
    """The planned peak, in bytes."""
    return plan_of(made.compiled).memory.peak_bytes


@pytest.mark.parametrize("way", sampled(WAYS, ("stored",)))
def test_the_peak_of_the_whole_step_is_within_the_budget(tmp_path: Path, way: str) -> None:
    plain = peak(program(tmp_path, way))
    everything = peak(program(tmp_path, way, 'recompute "layers.*"'))
    assert everything < plain
    budget = (plain + everything) // 2
    made = program(tmp_path, way, f"recompute to {budget}")
    assert everything <= peak(made) <= budget
    found = plan_of(made.compiled).recomputed
    assert found is not None and found.again and found.saved_bytes > 0
    assert found.microbatches == 4
    assert made.verify().ok


@pytest.mark.parametrize("way", sampled(WAYS, ("stored", "zbv")))
def test_nothing_is_computed_again_where_the_step_fits(tmp_path: Path, way: str) -> None:
    """A whole batch at once would not."""
    plain = peak(program(tmp_path, way))
    assert peak(program(tmp_path, way, f"recompute to {plain}")) == plain


@pytest.mark.parametrize("way", sampled(WAYS, ("stored", "zbv")))
def test_the_least_peak_that_a_refusal_names_is_reached(tmp_path: Path, way: str) -> None:
    with pytest.raises(CompileError) as caught:
        peak(program(tmp_path, way, "recompute to 1KiB"))
    (found,) = [one for one in caught.value.diagnostics if one.is_error]
    assert found.code == "SH0512"
    named = re.search(r"write `recompute to (\d+)`", str(found.help))
    assert named is not None
    assert peak(program(tmp_path, way, f"recompute to {named[1]}")) <= int(named[1])


@pytest.mark.parametrize(
    "recompute", ["recompute selective", 'recompute "layers.*"', 'recompute ""']
)
def test_what_is_sent_to_another_stage_is_kept(tmp_path: Path, recompute: str) -> None:
    """The backward of a later stage comes first, so it cannot wait for an earlier one."""
    assert program(tmp_path, "gpipe", recompute).verify().ok


def test_a_call_without_a_loss_has_a_step_of_the_whole_batch(tmp_path: Path) -> None:
    """A loop may make one, and its budget is that of the one step; the spec itself needs a loss."""
    spec = SPEC.format(mesh="dp = 2", batch="dp", stated="accumulate 4\nrecompute to 1MiB")
    model = MODEL.replace('return {"loss": torch.tanh(x).square().mean()}', "return torch.tanh(x)")
    (tmp_path / "model.py").write_text(model)
    (tmp_path / "net.shard").write_text(spec)
    stated, _ = load_spec(tmp_path / "net.shard")
    assert stated is not None
    assert compile_spec(stated).program.step.recompute.budget_bytes == 1 << 20
    with pytest.raises(CompileError, match="SH0514"):
        shardlang.compile(tmp_path / "net.shard")
