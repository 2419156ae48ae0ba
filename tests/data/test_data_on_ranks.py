"""What is read from a file of tokens trains as the plain model does, on two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trained
from spawn import spawn

from shardlang.ir.optimizers import UpdateRule
from shardlang.runtime.data import Order, Place
from shardlang.runtime.trainer.plain import PlainTrainee
from shardlang.runtime.trainer.recipe import Recipe
from shardlang.runtime.trainer.trainer import Trainer
from shardlang.training.data import samples_of, stream_of
from tests.data import data_on_ranks

WINDOWS = 23
ROWS = {"rows": ([0, 1, 2], [3, 4]), "accumulated": ([0, 1, 3], [2, 4])}
"""The rows of a batch of five that the two ranks hold."""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 windows of four tokens, and another file of as many."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    drawn = np.random.RandomState(0).randint(0, 11, 4 * WINDOWS + 1).astype(np.uint8)
    np.save(path, drawn)
    np.save(f"{path}.other.npy", drawn[::-1].copy())
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> list[Any]:
    out = tmp_path_factory.mktemp("ranks")
    return spawn("tests.data.data_on_ranks:everything", 2, out, 200, TOKENS=str(tokens))


@pytest.mark.parametrize("name", data_on_ranks.WAYS)
def test_the_losses_are_those_of_the_plain_model(ran: list[Any], tokens: Path, name: str) -> None:
    """The run is broken off and goes on, in the second epoch too."""
    stated = f"mesh {{ dp = 1 }} {data_on_ranks.statement(str(tokens))}"
    whole = stream_of(trained.program(stated).compiled, data_on_ranks.SEED)
    trainee = PlainTrainee(trained.seeded(), lambda m, batch: m(**batch)["loss"])
    trainer = Trainer(trainee, whole, Recipe(rule=UpdateRule("adamw", {"lr": 0.02})))
    want = [record.loss for record in trainer.steps(data_on_ranks.STEPS)]
    whole.close()
    for rank in ran:
        assert rank[name]["losses"] == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("name", data_on_ranks.WAYS)
def test_each_rank_reads_its_own_rows(ran: list[Any], name: str) -> None:
    order, place = Order(WINDOWS, data_on_ranks.SEED), Place()
    batches = []
    for _ in range(9):
        numbers, place = order.take(place, 5)
        batches.append(numbers.tolist())
    for rank, rows in enumerate(ROWS[name]):
        want = [batch[row] for batch in batches for row in rows]
        found = ran[rank][name]["read"]
        assert len(found) >= len(rows) * data_on_ranks.STEPS // 2
        assert found == want[: len(found)]


READ = {
    "rows": ([0, 1, 2, 5, 6, 7], [3, 4, 8, 9]),
    "all by both": (range(10), range(10)),
    "parts": ([0, 1, 3, 4, 6, 7, 9, 10], [2, 5, 8, 11]),
    "uneven parts": ([0, 1, 3, 5, 6, 8], [2, 4, 7, 9]),
}
"""The held-out windows that each rank reads, in two batches."""


@pytest.mark.parametrize("name", data_on_ranks.EVALUATED)
def test_an_evaluation_reads_own_rows_and_counts_each_label_once(
    ran: list[Any], tokens: Path, name: str
) -> None:
    """The mean over all labels of the two batches that are not left out."""
    stated = f"mesh {{ dp = 1 }} {data_on_ranks.statement(str(tokens))}"
    samples = samples_of(program := trained.program(stated).compiled, program.spec.data)
    first = len(samples) - 12
    with data_on_ranks.Noted():
        rows = data_on_ranks.EVALUATED[name][1]
        whole = samples.read(np.arange(first, first + 2 * rows), ["ids", "labels"])
    kept = int((whole["labels"] != -100).sum())
    loss = float(trained.seeded().eval()(**whole)["loss"].detach())
    for rank, want in zip(ran, READ[name], strict=True):
        for found, tokens_counted, read in rank["evaluated"][name]["found"]:
            assert found == pytest.approx(loss, rel=1e-12)
            assert tokens_counted == kept < 8 * rows
            assert read == [first + number for number in want]


def test_ranks_that_read_other_data_are_told_so(ran: list[Any]) -> None:
    for rank in ran:
        code, message = rank["other"]
        assert code == "SH0612" and "rank 1 reads other data than rank 0: its `data`" in message
