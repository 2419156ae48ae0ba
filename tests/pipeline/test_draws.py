"""Every stage draws what one device draws, under every schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shardlang.compiler.driver import CompileError
from shardlang.compiler.pipelined import SCHEDULES, pipelined
from shardlang.cost.timeline import alike, timeline
from shardlang.ir.pipeline.action import Work
from shardlang.passes.step import split_stages
from shardlang.proof.prove import verify_compiled
from shardlang.runtime.simulate_accumulated import AccumulatedSimulator
from shardlang.runtime.simulate_stages import StagedSimulator
from tests.broad import sampled
from tests.pipeline.families import Family
from tests.pipeline.proving import compiled_family, leaves_of


class Layer(nn.Module):
    """Dropouts, one of them inside attention, and noise that depends on the shape alone."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.drop, self.noisy = nn.Dropout(0.3), place % 3 == 1

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.scaled_dot_product_attention(x, x, x, dropout_p=0.2)
        if self.noisy:
            x = x * torch.bernoulli(torch.full_like(x, 0.7)) + 0.1 * torch.rand(4)
        return x + self.drop(self.down(torch.tanh(self.up(x))))


class Dropping(nn.Module):
    """Draws before, in and after the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)
        self.layers = nn.ModuleList(map(Layer, range(8)))

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        late = torch.rand(9)
        x = F.dropout(self.table(ids), 0.1)
        for layer in self.layers:
            x = layer(x)
        scores = self.head(F.dropout(x, 0.5)) * late
        return {"loss": F.cross_entropy(scores.flatten(0, 1), labels.flatten())}


class Leaking(Dropping):
    """How many numbers `rrelu` takes depends on the signs of what it reads."""

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = F.embedding(ids, F.rrelu(self.table.weight, training=True))
        for layer in self.layers:
            x = layer(x)
        return {"loss": F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())}


INPUTS = "input ids, labels : i64[8, 5] below 9 [ROWS, _]"
TP = 'param "layers.*.up.{weight,bias}" [tp, ...]\nparam "layers.*.down.weight" [_, tp]'
DROPPING = Family("dropping", Dropping, INPUTS, TP)


@pytest.mark.parametrize(
    ("schedule", "random"),
    sampled(
        [*((name, "exact") for name in SCHEDULES), ("1f1b", "fast"), ("zbv", "fast")],
        [("1f1b", "exact"), ("zbv", "fast")],
    ),
)
def test_every_schedule_draws_what_one_device_draws(
    tmp_path: Path, schedule: str, random: str
) -> None:
    compiled = compiled_family(tmp_path, DROPPING, "pp = 2, dp = 2", schedule, f"random {random}")
    report = verify_compiled(compiled)
    assert report.ok, report
    assert bool(report.draws_apart) is (random == "fast")


MESHES = ("pp = 4", "pp = 2, tp = 2", "pp = 2, fsdp = 2")


@pytest.mark.parametrize("mesh", sampled(MESHES, ("pp = 2, tp = 2",)))
def test_every_mesh_draws_what_one_device_draws(tmp_path: Path, mesh: str) -> None:
    report = verify_compiled(compiled_family(tmp_path, DROPPING, mesh, "1f1b"))
    assert report.ok, report


def test_stages_that_draw_apart_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_stages, "repeat_draws", lambda step, _: step)
    report = verify_compiled(compiled_family(tmp_path, DROPPING, "pp = 2", "1f1b"))
    assert not report.ok and report.accumulated and report.accumulated["loss"] > 1e-3


class Listening(StagedSimulator):
    """Keeps the state of the generator after every forward."""

    def _act(self, action, given, seed):  # type: ignore[no-untyped-def]
        super()._act(action, given, seed)
        if action.work is Work.FORWARD:
            self.states = [*getattr(self, "states", []), torch.get_rng_state()]


def test_all_devices_go_on_from_the_state_of_one(tmp_path: Path) -> None:
    compiled = compiled_family(tmp_path, DROPPING, "pp = 4", "zbv")
    made = pipelined(compiled)
    step, schedule = made.step.whole, made.schedule
    one = AccumulatedSimulator(step)
    leaves = leaves_of(step, one.meshes)
    torch.manual_seed(3)
    one.run(leaves)
    state = torch.get_rng_state()
    several = Listening(made.step)
    torch.manual_seed(3)
    several.run(leaves, timeline(schedule, alike).order)
    assert len(several.states) == 8 * step.axis.size
    assert all(torch.equal(found, state) for found in several.states)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_key_of_fast_draws_is_not_sent(tmp_path: Path) -> None:
    compiled = compiled_family(tmp_path, DROPPING, "pp = 4", "1f1b", "random fast")
    stages = pipelined(compiled).step.stages
    keys = [sum("stream_key" in node.name for node in one.step.graph.nodes) for one in stages]
    assert keys == [1, 1, 1, 1]
    assert [len(one.values) for one in stages] == [0, 1, 1, 1]


def test_a_draw_that_depends_on_values_is_refused(tmp_path: Path) -> None:
    family = Family("leaking", Leaking, INPUTS, "")
    with pytest.raises(CompileError) as error:
        verify_compiled(compiled_family(tmp_path, family, "pp = 2", "1f1b"))
    (found,) = error.value.diagnostics
    assert found.code == "SH0410" and "rrelu" in found.message
    assert found.span.file.endswith("test_draws.py")
