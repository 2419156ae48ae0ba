"""`split auto`: the best of all ways to cut the chain of layers."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shardlang
from shardlang.compiler.auto_split import auto_split
from shardlang.compiler.chain import chain_of
from shardlang.compiler.driver import Compiled, CompileError
from shardlang.compiler.pipelined import pipelined
from shardlang.cost.runs import best_runs
from tests.pipeline.test_stages import Words


def by_trying(
    work: list[int], memory: list[int], crossing: list[int], runs: int, never: set[int]
) -> tuple[int, int, int] | None:
    """The least work, memory and bytes of all ways to cut."""
    ways = []
    for cuts in combinations([i for i in range(1, len(work)) if i not in never], runs - 1):
        ways.append(measured(work, memory, crossing, (0, *cuts)))
    return min(ways, default=None)


def measured(
    work: list[int], memory: list[int], crossing: list[int], begins: tuple[int, ...]
) -> tuple[int, int, int]:
    runs = list(zip(begins, (*begins[1:], len(work)), strict=True))
    return (
        max(sum(work[a:b]) for a, b in runs),
        max(sum(memory[a:b]) for a, b in runs),
        sum(crossing[a] for a in begins[1:]),
    )


def test_no_way_to_cut_is_better() -> None:
    draws = random.Random(0)
    found = 0
    for _ in range(400):
        count = draws.randint(1, 9)
        # few values, so that there are ties to break
        work, memory, crossing = (
            [draws.randint(0, draws.choice([2, 3, 40])) for _ in range(count)] for _ in range(3)
        )
        runs = draws.randint(1, 5)
        never = {i for i in range(1, count) if draws.random() < 0.2}
        begins = best_runs(work, memory, crossing, runs, never)
        wanted = by_trying(work, memory, crossing, runs, never)
        assert (None if begins is None else measured(work, memory, crossing, begins)) == wanted
        found += begins is not None and len(begins) == runs
    assert found > 100


class Uneven(nn.Module):
    """Layers of which the first is as wide as all others, and a list that is no chain."""

    def __init__(self) -> None:
        super().__init__()
        widths = (480, 80, 80, 80, 80, 80)
        self.table = nn.Embedding(9, 6)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(6, n), nn.Tanh(), nn.Linear(n, 6)) for n in widths
        )
        self.heads = nn.ModuleList(nn.Linear(6, 9) for _ in range(2))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.table(ids)
        for layer in self.layers:
            x = x + layer(x)
        scores = sum(head(x) for head in self.heads)
        assert isinstance(scores, Tensor)
        return nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten())


class Skips(nn.Module):
    """Two lists, of which the second reads what the first makes, and one layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.down = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x, kept = self.table(ids), []
        for layer in self.down:
            x = layer(x).tanh()
            kept.append(x)
        for layer in self.up:
            x = layer(x + kept.pop()).tanh()
        x = self.up[1](x)
        return nn.functional.cross_entropy(x.flatten(0, 1), labels.flatten() % 6)


SPEC = """
mesh { pp = %d }
input ids, labels : i64[8, 5] below 9 [_, _]
pipeline pp { split auto  microbatches 4 }
"""


def compiled(folder: Path, model: type[nn.Module], ranks: int) -> Compiled:
    path = folder / "spec.shard"
    path.write_text(SPEC % ranks)
    return shardlang.compile(path, model=lambda: model().double()).compiled


def test_stages_are_alike_in_work(tmp_path: Path) -> None:
    split = auto_split(compiled(tmp_path, Uneven, 2), 2)
    assert [split.of(f"layers.{i}.0") for i in range(6)] == [0, 1, 1, 1, 1, 1]


def test_the_chain_is_the_outermost_lists(tmp_path: Path) -> None:
    made = compiled(tmp_path, Uneven, 2)
    chain = chain_of(made.program.graph, made.captured.modules)
    assert chain == [f"layers.{i}" for i in range(6)]
    made = compiled(tmp_path, Skips, 2)
    chain = chain_of(made.program.graph, made.captured.modules)
    assert chain == [f"{name}.{i}" for name in ("down", "up") for i in range(3)]


def test_what_runs_between_two_calls_of_a_layer_stays_with_it(tmp_path: Path) -> None:
    split = auto_split(compiled(tmp_path, Skips, 5), 5)
    assert split.of("up.1") == split.of("up.2") == 4
    with pytest.raises(CompileError, match="5 layers are too few for 6 stages"):
        compiled(tmp_path, Skips, 6)


def test_it_is_proven(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for model in (Words, Skips):
        made = compiled(tmp_path, model, 2)
        assert len(pipelined(made).step.stages) == 2
        program = shardlang.compile(tmp_path / "spec.shard", model=lambda m=model: m().double())
        assert program.verify().ok
