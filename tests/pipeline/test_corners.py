"""What else crosses stages: integers, masks, values for several stages, tied tables, buffers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shardlang.compiler.pipelined import SCHEDULES, pipelined
from shardlang.proof.prove import verify_compiled
from tests.broad import sampled
from tests.pipeline.families import Family
from tests.pipeline.proving import compiled_family


class Chosen(nn.Module):
    """Layers that choose positions and hide others by numbers that the first ones make."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))
        self.scale = nn.Parameter(torch.ones(()))
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        first = x = torch.tanh(self.layers[0](self.table(ids)))
        order, hidden = x.sum(-1).argsort(-1), x > 0.5
        for layer in self.layers[1:6]:
            x = torch.tanh(layer(x)) * self.scale + first
        x = self.layers[6](x.gather(1, order[..., None].expand_as(x)))
        x = self.layers[7](x.masked_fill(hidden, 0.0)) * first.exp()
        penalty = sum(layer.weight.square().sum() for layer in self.layers)
        loss = F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())
        return {"loss": loss + 0.01 * penalty}


CHOSEN = Family(
    "chosen", Chosen, "input ids, labels : i64[8, 5] below 9 [ROWS, _]",
    'param "layers.{1,3,6}.{weight,bias}" [tp, ...]',
)  # fmt: skip


@pytest.mark.parametrize("schedule", sampled(SCHEDULES, ("1f1b", "zb_h1", "zbv")))
def test_all_kinds_of_values(tmp_path: Path, schedule: str) -> None:
    report = verify_compiled(compiled_family(tmp_path, CHOSEN, "pp = 2, tp = 2", schedule))
    assert report.ok, report
    assert report.accumulated and {"calls", "scale"} <= report.accumulated.keys()


def test_integers_and_masks_are_sent(tmp_path: Path) -> None:
    stages = pipelined(compiled_family(tmp_path, CHOSEN, "pp = 4", "1f1b")).step.stages
    sent = {leaf.dtype for one in stages for leaf in one.step.leaves if leaf.name in one.values}
    assert {torch.int64, torch.bool, torch.float32} <= sent
    assert max(len(others) for one in stages for others in one.gives.values()) == 2


class Tied(nn.Module):
    """The last layer's features are split, and so is what the head would read of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = self.table(ids)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        scores = x @ self.table.weight.T
        return {"loss": F.cross_entropy(scores.flatten(0, 1), labels.flatten())}


def test_copies_of_a_tied_parameter_lie_as_it_does(tmp_path: Path) -> None:
    """Though nothing is stated of it, and their readers would have them otherwise."""
    params = 'param "layers.7.{weight,bias}" [tp, ...]'
    family = Family("tied", Tied, CHOSEN.inputs, params)
    compiled = compiled_family(tmp_path, family, "pp = 2, tp = 2", "1f1b")
    leaves = pipelined(compiled).along.program.leaves
    layouts = {leaf.name: leaf.layout for leaf in leaves if leaf.name.startswith("table")}
    assert layouts.keys() == {"table.weight", "table.weight@1"}
    assert len(set(layouts.values())) == 1
    report = verify_compiled(compiled)
    assert report.ok, report
