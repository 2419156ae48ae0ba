"""A step of several stages gives what that of one device gives, in the order of every schedule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shardlang
from shardlang.compiler.accumulate import accumulated_step, along_microbatches
from shardlang.cost.timeline import alike, timeline
from shardlang.ir.accumulated import AccumulatedStep
from shardlang.ir.pipeline.schedule import PipelineSchedule
from shardlang.ir.pipeline.split import Split
from shardlang.passes.schedules.dualpipe_v import dualpipe_v
from shardlang.passes.schedules.plain import gpipe, interleaved_1f1b, one_f_one_b
from shardlang.passes.schedules.zero_bubble import v_half, zb_h1, zbv
from shardlang.passes.step.split_stages import staged
from shardlang.runtime.simulate_accumulated import AccumulatedSimulator, ByName
from shardlang.runtime.simulate_stages import StagedSimulator
from tests.pipeline.proving import leaves_of

MICROBATCHES, STAGES = 4, 4


class Block(nn.Module):
    """A layer that all positions and a mask go through."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor, mask: Tensor, turn: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x) * turn))) * mask


class Words(nn.Module):
    """A table that is tied to the head, positions that no parameter makes, uneven labels."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)
        self.layers = nn.ModuleList(Block() for _ in range(4))

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        mask, turn = (ids > 1)[..., None].to(torch.float64), torch.arange(5.0)[:, None].cos()
        x = self.table(ids)
        for layer in self.layers:
            x = layer(x, mask, turn.to(x.dtype))
        scores = (self.norm(x) @ self.table.weight.T).flatten(0, 1)
        wanted = torch.where(labels > 5, -100, labels).flatten()
        return {"loss": F.cross_entropy(scores, wanted)}


class Skips(nn.Module):
    """What the first half makes, the second reads in reverse: no stage hands it on."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 9)

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        first = torch.tanh(self.layers[0](self.table(ids)))
        second = torch.tanh(self.layers[1](first))
        third = torch.tanh(self.layers[2](second) + second)
        last = self.layers[3](third) * first
        return {"loss": F.cross_entropy(self.head(last).flatten(0, 1), labels.flatten())}


SPECS = {
    "dp": "mesh { dp = 2 }\n",
    "stored": 'mesh { dp = 2 }\nstore "**" over dp regather\n',
    "tp": 'mesh { tp = 2 }\nparam "layers.*.up.weight" [tp, _]\nparam "layers.*.up.bias" [tp]\n'
    'param "layers.*.down.weight" [_, tp]\n',
}
ORDERS: dict[str, Callable[[], PipelineSchedule]] = {
    "gpipe": lambda: gpipe(4, MICROBATCHES), "1f1b": lambda: one_f_one_b(4, MICROBATCHES),
    "zb_h1": lambda: zb_h1(4, MICROBATCHES), "zbv": lambda: zbv(2, MICROBATCHES),
    "interleaved": lambda: interleaved_1f1b(2, MICROBATCHES),
    "v_half": lambda: v_half(2, MICROBATCHES), "dualpipe_v": lambda: dualpipe_v(2, MICROBATCHES),
}  # fmt: skip


def step_of(folder: Path, model: type[nn.Module], spec: str) -> AccumulatedStep:
    """The step of four microbatches, whose ops and parameters have stages."""
    rows = "[dp, _]" if "dp" in spec else "[_, _]"
    inputs = f"input ids, labels : i64[8, 5] below 9 {rows}\naccumulate {MICROBATCHES}\n"
    path = folder / "spec.shard"
    path.write_text(spec + inputs)
    compiled = shardlang.compile(path, model=lambda: model().double()).compiled
    return accumulated_step(along_microbatches(compiled, Split.evenly("layers", 4, STAGES)))


def joined(gradients: ByName, tied: dict[str, str]) -> ByName:
    """The gradients under the names of the model: those of tied leaves added."""
    for name, first in tied.items():
        pairs = zip(gradients[first], gradients.pop(name), strict=True)
        gradients[first] = [a + b for a, b in pairs]
    return gradients


@pytest.mark.parametrize(
    ("model", "spec"), [(Words, "dp"), (Words, "stored"), (Words, "tp"), (Skips, "dp")]
)
def test_stages_give_what_one_device_gives(
    tmp_path: Path, model: type[nn.Module], spec: str
) -> None:
    torch.manual_seed(0)
    step = step_of(tmp_path, model, SPECS[spec])
    one, several = AccumulatedSimulator(step), staged(step, STAGES)
    leaves = leaves_of(step, one.meshes)
    wanted = one.run(leaves)
    gradients = joined(wanted.gradients, dict(several.tied))
    for name, make in ORDERS.items():
        found = StagedSimulator(several).run(leaves, timeline(make(), alike).order)
        torch.testing.assert_close(found.loss, wanted.loss, rtol=0, atol=1e-15, msg=name)
        torch.testing.assert_close(found.gradients, gradients, rtol=1e-13, atol=1e-15, msg=name)


def test_every_parameter_lies_in_one_stage_and_only_what_is_read_is_sent(tmp_path: Path) -> None:
    stages = staged(step_of(tmp_path, Words, SPECS["tp"]), STAGES).stages
    held = [{leaf.name for leaf in one.step.leaves if leaf.trainable} for one in stages]
    assert all(f"layers.{i}.up.weight" in names for i, names in enumerate(held))
    assert [sum(name.startswith("table") for name in names) for names in held] == [1, 0, 0, 1]
    assert [len(one.values) for one in stages] == [0, 1, 1, 1]
    assert [len(one.gradients) for one in stages] == [1, 1, 1, 0]


def test_a_skip_is_sent_to_the_stage_that_reads_it(tmp_path: Path) -> None:
    stages = staged(step_of(tmp_path, Skips, SPECS["dp"]), STAGES).stages
    assert sorted(stages[0].gives.values()) == [(1, 3)]
    assert list(stages[3].values.values()) == [0, 2]


def test_what_comes_too_late_is_found(tmp_path: Path) -> None:
    step = step_of(tmp_path, Words, SPECS["dp"])
    simulator = StagedSimulator(staged(step, STAGES))
    leaves = leaves_of(step, simulator.meshes)
    order = list(timeline(gpipe(4, MICROBATCHES), alike).order)
    order[0], order[4] = order[4], order[0]
    with pytest.raises(RuntimeError, match="which was not sent"):
        simulator.run(leaves, [order[-1], *order[:-1]])
