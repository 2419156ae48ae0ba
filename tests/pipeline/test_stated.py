"""What `pipeline` states: the axis, the stages, the schedule and the microbatches of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shardlang
from shardlang.compiler.driver import Compiled
from shardlang.compiler.pipelined import SCHEDULES, pipelined
from shardlang.compiler.stages import split_of
from shardlang.cost.timeline import alike, timeline
from shardlang.ir.pipeline.kinds import STAGES_OF_RANK
from shardlang.passes.schedules.zero_bubble import zbv
from shardlang.runtime.simulate_accumulated import AccumulatedSimulator
from shardlang.runtime.simulate_stages import StagedSimulator
from tests.pipeline.test_stages import Words, joined, leaves_of

SPEC = """
mesh { pp = %d  dp = 2 }
input ids, labels : i64[16, 5] below 9 [dp, _]
pipeline pp { split "layers"  microbatches 4  %s }
"""
STATED = {name: f"schedule {name}" for name in SCHEDULES}


class TwoHalves(nn.Module):
    """Two lists of layers, one behind the other, as encoder and decoder are."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
        self.up = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        for layer in self.up:
            x = layer(x).tanh()
        return x.mean()


def compiled(folder: Path, text: str, model: type[nn.Module] = Words) -> Compiled:
    path = folder / "spec.shard"
    path.write_text(text)
    return shardlang.compile(path, model=lambda: model().double()).compiled


def test_every_schedule_can_be_named() -> None:
    assert SCHEDULES.keys() == STAGES_OF_RANK.keys()


@pytest.mark.parametrize(("name", "stated"), STATED.items())
def test_stages_are_those_of_the_ranks(tmp_path: Path, name: str, stated: str) -> None:
    made = pipelined(compiled(tmp_path, SPEC % (2, stated)))
    assert (made.axis.name, len(made.schedule.ranks)) == ("pp", 2)
    assert made.schedule.stages == len(made.step.stages) == 2 * STAGES_OF_RANK[name]
    assert made.schedule.microbatches == 4


@pytest.mark.parametrize(
    ("ranks", "stated"), [(1, ""), (1, "schedule v_half"), (2, ""), (2, STATED["zbv"])]
)
def test_it_gives_what_one_device_gives(tmp_path: Path, ranks: int, stated: str) -> None:
    torch.manual_seed(0)
    made = pipelined(compiled(tmp_path, SPEC % (ranks, stated)))
    one = AccumulatedSimulator(made.step.whole)
    leaves = leaves_of(made.step.whole, one.meshes)
    wanted = one.run(leaves)
    found = StagedSimulator(made.step).run(leaves, timeline(made.schedule, alike).order)
    gradients = joined(wanted.gradients, dict(made.step.tied))
    torch.testing.assert_close(found.loss, wanted.loss, rtol=0, atol=1e-15)
    torch.testing.assert_close(found.gradients, gradients, rtol=1e-13, atol=1e-15)


def test_stages_can_be_listed(tmp_path: Path) -> None:
    stages = 'stage "table", "layers.{0,1}"  stage "layers.2"  stage "layers.3", "norm"'
    text = (SPEC % (3, "schedule gpipe")).replace('split "layers"', f"split {{ {stages} }}")
    made = pipelined(compiled(tmp_path, text))
    held = [sorted({leaf.name.split(".up")[0] for leaf in stage.step.leaves if leaf.trainable
                    if ".up" in leaf.name}) for stage in made.step.stages]  # fmt: skip
    assert held == [["layers.0", "layers.1"], ["layers.2"], ["layers.3"]]


def test_a_schedule_can_be_a_file(tmp_path: Path) -> None:
    torch_writes = zbv(2, 4).to_csv()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.csv").write_text(torch_writes)
    made = pipelined(compiled(tmp_path, SPEC % (2, 'schedule "sub/mine.csv"')))
    assert made.schedule == zbv(2, 4)
    assert len(made.step.stages) == 4


@pytest.mark.parametrize("lists", ['"down", "up"', '"{down,up}"'])
def test_several_lists_are_dealt_out_one_after_the_other(tmp_path: Path, lists: str) -> None:
    text = f"""
    mesh {{ pp = 5 }}
    input x : f64[4, 4] [_, _]
    pipeline pp {{ split {lists} microbatches 4 }}
    """
    split = split_of(compiled(tmp_path, text, TwoHalves), 5)
    assert [split.of(f"down.{i}") for i in range(3)] == [0, 0, 0]
    assert [split.of(f"up.{i}") for i in range(12)] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_it_is_proven_and_planned(tmp_path: Path) -> None:
    compiled(tmp_path, SPEC % (2, ""))
    program = shardlang.compile(tmp_path / "spec.shard", model=lambda: Words().double())
    assert program.verify().ok
    stages = program.plan()["stages"]
    assert isinstance(stages, list)
    assert [row["stage"] for row in stages] == [0, 1]
