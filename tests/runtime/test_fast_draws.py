"""GPT-2 with dropout 0.1, `random fast`, on dp 2 x tp 2 with five rows: the masks themselves."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import fast_draws
import pytest
import torch
from spawn import spawn
from torch import Tensor

from shardlang.api import Program
from shardlang.compiler.driver import Compiled
from shardlang.ir.device_values import PartNumber
from shardlang.ir.layout import Layout
from shardlang.rules import random
from shardlang.rules.op_rule import Streams
from shardlang.runtime.trainer.plain import PlainTrainee
from shardlang.training import run as training_run
from shardlang.training.data import stream_of
from shardlang.training.recipe import recipe_of
from shardlang.training.run import Run

P, STEPS = 0.1, 24
SIGMAS = 5
"""Bounds of five standard deviations; the seed is fixed, so a test either always holds or never."""

Drawn = dict[tuple[int, int], list[Tensor]]
"""Step and number of the draw to the masks of the four devices."""


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return fast_draws.compiled()


@pytest.fixture(scope="module")
def drawn(compiled: Compiled) -> Drawn:
    """The masks of a simulated run."""
    _, masks = fast_draws.simulated(compiled, STEPS)
    return by_step(masks, len(masks) // (4 * STEPS))


@pytest.fixture(scope="module")
def split_over(compiled: Compiled) -> dict[int, tuple[str, ...]]:
    """The axes that split each draw."""
    found = {}
    for node in compiled.program.graph.nodes:
        for arg, number in zip(node.args[1:], node.args, strict=False):
            if isinstance(arg, PartNumber):
                found[number] = tuple(axis.name for axis in arg.axes)
    return found


def by_step(masks: fast_draws.Masks, draws: int) -> Drawn:
    """The masks sorted; a simulated op draws on one device after the other."""
    found: Drawn = defaultdict(list)
    for place, (number, mask) in enumerate(masks):
        found[(place // (4 * draws), number)].append(mask)
    assert {len(each) for each in found.values()} == {4}
    return found


def correlation(a: Tensor, b: Tensor) -> tuple[float, int]:
    """The correlation of two masks on the rows that both have, and the number of elements."""
    rows = min(len(a), len(b))
    x, y = (mask[:rows].flatten().double() - (1 - P) for mask in (a, b))
    return float((x * y).mean()) / (P * (1 - P)), x.numel()


def test_every_dropout_is_drawn_by_shard(split_over: dict[int, tuple[str, ...]]) -> None:
    """Attention is split over both axes, the residual stream over the batch alone."""
    assert len(split_over) == 7
    assert sorted(split_over.values()) == [("dp",)] * 5 + [("dp", "tp")] * 2


def test_replicas_draw_the_same_and_shards_do_not(
    drawn: Drawn, split_over: dict[int, tuple[str, ...]]
) -> None:
    for (_, number), (a, b, c, d) in drawn.items():
        assert (len(a), len(b), len(c), len(d)) == (3, 3, 2, 2)
        whole_over_tp = "tp" not in split_over[number]
        assert torch.equal(a, b) == whole_over_tp
        assert torch.equal(c, d) == whole_over_tp
        assert not torch.equal(a[:2], c)
        assert not torch.equal(a[:2], d)


def test_shards_are_uncorrelated(drawn: Drawn) -> None:
    """Each pair of shards of each draw, over all steps."""
    for number in {draw for _, draw in drawn}:
        mine = [drawn[(step, number)] for step in range(STEPS)]
        for i, j in itertools.combinations(range(4), 2):
            if all(torch.equal(masks[i], masks[j]) for masks in mine):
                continue
            pairs = [correlation(masks[i], masks[j]) for masks in mine]
            count = sum(n for _, n in pairs)
            assert abs(sum(r * n for r, n in pairs) / count) < SIGMAS / count**0.5, (number, i, j)


def test_ops_and_steps_are_uncorrelated(drawn: Drawn) -> None:
    """Masks of one shape, of different draws or of different steps, on the first device."""
    shapes = defaultdict(list)
    for masks in drawn.values():
        shapes[masks[0].shape].append(masks[0])
    assert {len(each) for each in shapes.values()} == {5 * STEPS, 2 * STEPS}
    for each in shapes.values():
        flat = torch.stack([mask.flatten() for mask in each]).double()
        pairs = torch.corrcoef(flat) - torch.eye(len(each))
        # some thousand pairs at once: six sigmas are passed by chance in one of 100,000 runs
        assert pairs.abs().max() < 6 / flat.shape[1] ** 0.5


def test_the_kept_fraction_is_right(drawn: Drawn, split_over: dict[int, tuple[str, ...]]) -> None:
    """The number kept of each draw over all steps, and of all draws, is binomial."""
    total = kept = 0
    for number, axes in split_over.items():
        own = [0, 2] if "tp" not in axes else [0, 1, 2, 3]
        masks = [drawn[(step, number)][i] for step in range(STEPS) for i in own]
        n, k = sum(m.numel() for m in masks), sum(int(m.sum()) for m in masks)
        assert abs(k - n * (1 - P)) < SIGMAS * (n * P * (1 - P)) ** 0.5
        total, kept = total + n, kept + k
    assert total > 700_000
    assert abs(kept - total * (1 - P)) < SIGMAS * (total * P * (1 - P)) ** 0.5


def test_the_plain_model_trains_on_the_device_of_the_run(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU draws other masks than a CPU."""
    found: list[PlainTrainee] = []
    make = training_run.plain_trainee
    monkeypatch.setattr(
        training_run, "plain_trainee", lambda *given: found.append(make(*given)) or found[0]
    )
    device = torch.device("meta")
    Run(compiled, recipe_of(compiled)).reference(list, device)
    batch = found[0].prepare(next(stream_of(compiled, 0)))
    tensors = [*found[0].module.parameters(), *batch.values()]
    assert {x.device for x in tensors if isinstance(x, Tensor)} == {device}


def test_replicas_that_draw_apart_are_found(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(layout: Layout, source: Streams, dims: int | None = None) -> tuple[Any, ...]:
        return (*source.take(), PartNumber(compiled.program.mesh.axes))

    monkeypatch.setattr(random, "_stream", wrong)
    report = Program(compiled).verify()
    assert not report.ok
    assert report.first is not None
    assert report.first.name.startswith("dropout")


def test_four_processes_draw_and_learn_as_the_simulated_devices(
    compiled: Compiled, tmp_path: Path
) -> None:
    ranks = spawn("fast_draws:on_ranks", 4, tmp_path, prepared=1)
    losses, masks = fast_draws.simulated(compiled)
    assert len(set(losses)) == fast_draws.STEPS
    for rank, (found, own) in enumerate(ranks):
        assert found == pytest.approx(losses, rel=1e-5)
        mine = masks[rank::4]
        assert len(own) == len(mine)
        for (number, mask), (other, want) in zip(own, mine, strict=True):
            assert number == other
            assert torch.equal(mask, want)
