"""Batches from a text: the same for every run, and refused where they do not fit."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from shardlang.runtime.data import text_batches
from shardlang.runtime.errors import RunError

SHAPES = {"input_ids": (2, 4), "labels": (2, 4)}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Five windows of four bytes, and a rest."""
    path = tmp_path / "text"
    path.write_bytes(bytes(range(22)))
    return path


def test_batches_are_windows_of_the_text_in_an_order_of_the_seed(text: Path) -> None:
    first = [b["input_ids"] for b in itertools.islice(text_batches(text, SHAPES, 256, 1), 5)]
    again = [b["labels"] for b in itertools.islice(text_batches(text, SHAPES, 256, 1), 5)]
    other = [b["labels"] for b in itertools.islice(text_batches(text, SHAPES, 256, 2), 5)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    for row in torch.cat(first):
        assert row[0] % 4 == 0
        assert row.tolist() == list(range(int(row[0]), int(row[0]) + 4))


def test_an_epoch_repeats_no_window(text: Path) -> None:
    epoch = itertools.islice(text_batches(text, SHAPES, 256, 0), 2)
    starts = [int(row[0]) for batch in epoch for row in batch["input_ids"]]
    assert len(set(starts)) == 4


@pytest.mark.parametrize(
    ("shapes", "vocabulary", "message"),
    [
        (SHAPES, 255, "a text has 256 kinds of bytes, and the model knows 255 tokens"),
        ({**SHAPES, "mask": (2, 4)}, 256, "and the model takes `mask`"),
        ({"pixels": (2, 3, 4, 4)}, 256, "and the model takes `pixels`"),
        ({"input_ids": (4, 8)}, 256, "holds 22 bytes, and one batch of 4 x 8 needs 32"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    text: Path, shapes: dict[str, tuple[int, ...]], vocabulary: int, message: str
) -> None:
    with pytest.raises(RunError) as caught:
        text_batches(text, shapes, vocabulary, 0)
    assert caught.value.code == "SH0605"
    assert message in caught.value.message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such file or directory"):
        text_batches(tmp_path / "none", SHAPES, 256, 0)
