"""Batches from a text: the same for every run, and refused where they do not fit."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from shardlang.capture.hf import HfSource
from shardlang.runtime.data import (
    Encode,
    Order,
    SampleStream,
    TokenSamples,
    WholeReader,
    pieces_of,
    text_tokens,
)
from shardlang.runtime.errors import RunError
from shardlang.training.tokens import tokenizer_of
from tests.data.given import BOTH, Input

S = 4


def stream(
    path: Path,
    seed: int = 0,
    inputs: tuple[Input, ...] = BOTH,
    known: int = 256,
    encode: Encode | None = None,
    drop_last: bool = False,
) -> SampleStream:
    """The batches of a text."""
    samples = TokenSamples(text_tokens(path, known, encode), inputs, known)
    order = Order(len(samples), seed, drop_last=drop_last)
    names = tuple(one.name for one in inputs)
    return SampleStream(samples, inputs[0].shape[0], order, WholeReader(names), ready=0)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Five windows of four bytes, and a rest."""
    path = tmp_path / "text"
    path.write_bytes(bytes(range(22)))
    return path


def test_batches_are_windows_of_the_text_in_an_order_of_the_seed(text: Path) -> None:
    first = [b["input_ids"] for b in itertools.islice(stream(text, 1), 5)]
    again = [b["labels"] for b in itertools.islice(stream(text, 1), 5)]
    other = [b["labels"] for b in itertools.islice(stream(text, 2), 5)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    for row in torch.cat(first):
        assert row[0] % S == 0
        assert row.tolist() == list(range(int(row[0]), int(row[0]) + S))


@pytest.mark.parametrize(("drop_last", "given"), [(False, 10), (True, 8)])
def test_an_epoch_gives_every_window_once_or_leaves_the_rest_out(
    text: Path, drop_last: bool, given: int
) -> None:
    made = itertools.islice(stream(text, drop_last=drop_last), given // 2)
    starts = [int(row[0]) for batch in made for row in batch["input_ids"]]
    epochs = [starts[: given // 2], starts[given // 2 :]]
    assert [len(set(epoch)) for epoch in epochs] == [given // 2, given // 2]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("inputs", "vocabulary", "message"),
    [
        (BOTH, 255, "a text has 256 kinds of bytes, and the model knows 255 tokens"),
        ((*BOTH, Input("mask")), 256, "and the model takes `mask`"),
        ((Input("pixels", (2, 3, 4, 4)),), 256, "and the model takes `pixels`"),
        ((Input("input_ids", (4, 8)),), 256, "holds 2 samples (windows of 8 tokens), and a batch"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    text: Path, inputs: tuple[Input, ...], vocabulary: int, message: str
) -> None:
    with pytest.raises(RunError) as caught:
        stream(text, inputs=inputs, known=vocabulary)
    assert caught.value.code == "SH0605"
    assert message in caught.value.message


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b"caf\xe9" * 9)
    cases = {
        "none": "no such file or directory", "pipe": "not a regular file",
        ".": "not a regular file", "lines.jsonl": "lines.jsonl -o lines.bin", "text.gz": "packed",
        "ids.npz": "one array of ids as `.npy`",
    }  # fmt: skip
    for name, said in cases.items():
        with pytest.raises(RunError) as caught:
            stream(tmp_path / name)
        assert caught.value.code == "SH0651"
        assert said in f"{caught.value.message}; {caught.value.help}"
    with pytest.raises(RunError, match="byte 3 is none"):
        stream(tmp_path / "latin", encode=lambda text: [1] * len(text))
    with pytest.raises(RunError, match="is packed"):
        list(pieces_of(tmp_path / "texts.zip", "text"))
    (tmp_path / "empty").touch()
    with pytest.raises(RunError, match="holds 0 samples"):
        stream(tmp_path / "empty")


WORDS = ("the", "cat", "sat", "on", "mat")


def folder_of(path: Path, **metadata: str) -> HfSource:
    """A folder with a configuration and weights."""
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"x": torch.zeros(1)}, path / "model.safetensors", metadata)
    return HfSource(path)


def test_a_checkpoint_is_fed_by_its_own_tokenizer(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "own")
    words = {word: 100 + i for i, word in enumerate(WORDS)}
    own = Tokenizer(WordLevel(words, unk_token="the"))
    own.pre_tokenizer = Whitespace()
    own.save(str(tmp_path / "own" / "tokenizer.json"))
    found = tokenizer_of(source, 300)
    assert found.kind == "tokenizer" and found.encode is not None
    (tmp_path / "text").write_text("the cat sat on the mat sat the " * 4)
    given = stream(tmp_path / "text", known=300, encode=found.encode)
    rows = {tuple(row.tolist()) for row in next(given)["input_ids"]}
    assert rows <= {(100, 101, 102, 103), (100, 104, 102, 100)}
    with pytest.raises(RunError, match="holds the token 104, and the model knows 104"):
        stream(tmp_path / "text", known=104, encode=found.encode)
    (tmp_path / "own" / "tokenizer.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        tokenizer_of(source, 300)


def test_a_checkpoint_without_a_tokenizer_is_not_fed_bytes(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds weights but no tokenizer"):
        tokenizer_of(folder_of(tmp_path / "foreign"), 300)
    assert tokenizer_of(folder_of(tmp_path / "bytes", tokens="bytes"), 300).kind == "bytes"
    assert tokenizer_of(HfSource(tmp_path / "bytes"), 256).kind == "bytes"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text('{"model_type": "llama"}')
    assert tokenizer_of(HfSource(tmp_path / "new"), 300).kind == "bytes"
