"""Rows of Hugging Face data sets, and token files from their columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shardlang.runtime.data import TableSamples, open_tokens
from shardlang.runtime.errors import RunError
from shardlang.training.encoders import plain_encoder
from shardlang.training.prepare import prepare
from tests.data.given import BOTH, Input


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rows of four ids, ids of other lengths, texts and pixels, in files of each kind."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("tables")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    rows = {
        "input_ids": [[10 * i + j for j in range(4)] for i in range(6)],
        "ragged": [[i] * (i + 1) for i in range(6)],
        "text": ["a", "bc", "", "d", "e", "f"],
        "pixels": [[0.5 * i, 1.0] for i in range(6)],
        "halves": [[i + 0.5] * 4 for i in range(6)],
        "parts": [{"x": i} for i in range(6)],
        "none": [[] for _ in range(6)],
        "some": [[i] * 4 if i != 3 else None for i in range(6)],
    }
    table: Any = datasets.Dataset.from_dict(rows)
    table.to_parquet(str(folder / "rows.parquet"))
    datasets.DatasetDict({"train": table, "test": table.select([5])}).save_to_disk(
        str(folder / "saved")
    )
    return folder


def test_columns_are_the_inputs_and_ids_the_labels(folder: Path) -> None:
    arrow = next((folder / "saved" / "train").glob("*.arrow"))
    more = Input("pixels", (2, 2), torch.float32)
    for path in (folder / "rows.parquet", arrow, folder / "saved"):
        samples = TableSamples(path, (*BOTH, more), 100)
        made = samples.read(np.array([4, 1]), ("input_ids", "labels", "pixels"))
        assert made["input_ids"].tolist() == [[40, 41, 42, 43], [10, 11, 12, 13]]
        assert torch.equal(made["labels"], made["input_ids"])
        assert made["pixels"].tolist() == [[2.0, 1.0], [0.5, 1.0]]
        assert len(samples) == 6
        assert samples.read(np.array([], dtype=np.int64), ["pixels"])["pixels"].shape == (0, 2)
    whole = TableSamples(folder / "saved", BOTH, 100)
    part = TableSamples(folder / "saved", BOTH, 100, "test")
    assert len(part) == 1 and part.fingerprint != whole.fingerprint
    again = TableSamples(folder / "rows.parquet", BOTH, 100)
    assert again.fingerprint == whole.fingerprint
    named = TableSamples(
        folder / "saved", (Input("x"), Input("y")), 100, roles={"x": "input_ids", "y": "labels"}
    )
    assert named.read(np.array([2]), ["x", "y"])["y"].tolist() == [[20, 21, 22, 23]]


@pytest.mark.parametrize(
    ("name", "inputs", "split", "code", "said"),
    [
        ("rows.parquet", (Input("mask"),), "train", "SH0605", "no column `mask`; it has `in"),
        ("saved", BOTH, "dev", "SH0651", "has the parts `train`, `test`, and no `dev`"),
        ("none.parquet", BOTH, "train", "SH0651", "cannot read"),
        ("cache", BOTH, "train", "SH0651", "cannot read"),
        ("rows.parquet", (Input("ragged"),), "train", "SH0605", "has the shape [1], and the model"),
        ("rows.parquet", (Input("input_ids", (2, 5)),), "train", "SH0605", "shape [4], and the"),
        ("rows.parquet", (Input("text"),), "train", "SH0605", "is a `str`, and the model takes"),
        ("rows.parquet", (Input("some"),), "train", "SH0605", "row 3 of `some` in "),
        ("rows.parquet", (Input("parts"),), "train", "SH0605", "is a `dict`, and the model takes"),
        ("rows.parquet", (Input("none"),), "train", "SH0605", "rows.parquet` is empty"),
        ("rows.parquet", (Input("halves"),), "train", "SH0605",
         "`halves` in `{folder}/rows.parquet` holds floats, and the model takes int64"),
        ("rows.parquet", BOTH, "train", "SH0652", "holds the token 53, and the model knows 53"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    folder: Path, name: str, inputs: tuple[Input, ...], split: str, code: str, said: str
) -> None:
    with pytest.raises(RunError) as caught:
        TableSamples(folder / name, inputs, 53, split).read(np.arange(6), [inputs[0].name])
    assert caught.value.code == code and caught.value.help
    assert said.format(folder=folder) in caught.value.message


def test_columns_become_files_of_tokens(folder: Path, tmp_path: Path) -> None:
    prepare([folder / "rows.parquet"], tmp_path / "a.bin", plain_encoder(6), "ragged")
    tokens = open_tokens(tmp_path / "a.bin")
    assert tokens.starts.tolist() == [0, 1, 3, 6, 10, 15] and int(tokens.ids[20]) == 5
    prepare([folder / "rows.parquet"], tmp_path / "b.bin", plain_encoder(None))
    assert open_tokens(tmp_path / "b.bin").ids.tobytes() == b"a\0bc\0\0d\0e\0f\0"
    with pytest.raises(RunError, match="neither texts nor lists of ids"):
        prepare([folder / "rows.parquet"], tmp_path / "c.bin", plain_encoder(None), "pixels")
