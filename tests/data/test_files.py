"""Files of tokens: made from texts, mapped, cut into samples, refused where they are not whole."""

from __future__ import annotations

import gzip
import json
import os
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from shardlang.capture import HfSource, InputSpec
from shardlang.cli import execute
from shardlang.runtime.data import TokenSamples, TokenWriter, open_tokens, pieces_of
from shardlang.runtime.data.documents import PIECE
from shardlang.runtime.errors import RunError
from shardlang.spec.types import DataDecl
from shardlang.training.data import samples_of
from shardlang.training.encoders import encoder_of, plain_encoder
from shardlang.training.prepare import prepare
from tests.data.given import BOTH, Input

WORDS = ("the", "cat", "sat", "on", "mat", "</s>")


def write(path: Path, documents: list[list[int]], vocabulary: int = 300) -> Path:
    """A file of tokens."""
    with TokenWriter(path, vocabulary, "") as writer:
        for ids in documents:
            writer.add(ids)
        writer.commit()
    return path


def tokenizer(folder: Path, first: int = 100) -> Path:
    """A folder with a tokenizer of a few words."""
    folder.mkdir()
    own = Tokenizer(WordLevel({word: first + i for i, word in enumerate(WORDS)}, unk_token="the"))
    own.pre_tokenizer = Whitespace()
    own.save(str(folder / "tokenizer.json"))
    return folder


def made(path: Path) -> list[list[int]]:
    """The documents in a file of tokens."""
    tokens = open_tokens(path)
    ends = [*tokens.starts.tolist()[1:], len(tokens)]
    rows = zip(tokens.starts.tolist(), ends, strict=True)
    return [tokens.read(np.arange(start, end)).tolist() for start, end in rows]


def test_texts_and_lines_become_tokens_by_a_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"body": "the cat"}\n\n{"body": "mat"}\n{"body": ""}\n{"body": [105, 101]}\n'
    )
    (tmp_path / "b.txt").write_text("sat on\nthe mat")
    with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
        file.write("cat")
    folder, out = tokenizer(tmp_path / "own"), tmp_path / "out.bin"
    inputs = [str(tmp_path / name) for name in ("a.jsonl", "b.txt", "c.txt.gz")]
    asked = ["-o", str(out), "--tokenizer", str(folder), "--field", "body"]
    assert execute(["data", "prepare", *inputs, *asked]) == 0
    wanted = [[100, 101], [104], [], [105, 101], [102, 103, 100, 104], [101]]
    assert made(out) == [[*document, 105] for document in wanted]
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out.bin", "out.bin.index"]
    assert not list(tmp_path.glob(".*"))
    assert execute(["data", "prepare", *inputs, *asked]) == 2
    assert "out.bin exists; add --force" in capsys.readouterr().err
    assert execute(["data", "show", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["tokens"], shown["documents"], shown["largest"]) == (16, 6, 105)
    assert shown["tokenizer"] == encoder_of(folder / "tokenizer.json").fingerprint
    assert encoder_of(tokenizer(tmp_path / "other", 7)).fingerprint != shown["tokenizer"]


def test_a_long_text_is_read_in_pieces_that_end_with_lines(tmp_path: Path) -> None:
    line = "ä" * 99 + "\n"
    (tmp_path / "long.txt").write_text(line * (2 * PIECE // 199), encoding="utf-8")
    found = list(pieces_of(tmp_path / "long.txt", "text"))
    assert [piece.ends for piece in found] == [False] * (len(found) - 1) + [True]
    assert len(found) > 1 and all(len(piece.content) < 2 * PIECE for piece in found)
    assert "".join(str(p.content) for p in found) == line * (2 * PIECE // 199)
    prepare([tmp_path / "long.txt"], tmp_path / "long.bin", plain_encoder(None))
    tokens = open_tokens(tmp_path / "long.bin")
    assert tokens.starts.tolist() == [0] and int(tokens.ids[-1]) == 0
    assert tokens.ids[:-1].tobytes() == (tmp_path / "long.txt").read_bytes()


IDS, TEXTS = '{"text": [3, 4, 5]}\n{"text": [6]}\n', '{"text": "ab"}\n{"text": "c"}\n'


@pytest.mark.parametrize(
    ("text", "options", "wanted"),
    [
        (IDS, ("--vocabulary", "60", "--end", "50"), [3, 4, 5, 50, 6, 50]),
        (IDS, ("--vocabulary", "60"), [3, 4, 5, 6]),
        (TEXTS, ("--end", "10"), [97, 98, 10, 99, 10]),
        (TEXTS, (), [97, 98, 0, 99, 0]),
        (TEXTS, ("--no-end",), [97, 98, 99]),
    ],
)
def test_what_stands_behind_documents_without_a_tokenizer(
    tmp_path: Path, text: str, options: tuple[str, ...], wanted: list[int]
) -> None:
    (tmp_path / "in.jsonl").write_text(text)
    out = tmp_path / "out.bin"
    assert execute(["data", "prepare", str(tmp_path / "in.jsonl"), "-o", str(out), *options]) == 0
    tokens = open_tokens(out)
    assert tokens.ids.tolist() == wanted and tokens.starts.size == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--end", "256"), "`--end 256` is no id below 256"),
        (("--end", "</s>", "--vocabulary", "9"), "`--end </s>` is no id below 9"),
        (("--end", "1", "--no-end"), "contradicts --no-end"),
    ],
)
def test_an_end_that_is_no_id_is_refused(
    tmp_path: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(TEXTS)
    out = tmp_path / "out.bin"
    assert execute(["data", "prepare", str(tmp_path / "in.jsonl"), "-o", str(out), *options])
    assert said in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"text": "a"}\n{"text": 3}\n', "`text` in `{}:2` is neither a text nor a list of ids"),
        ('{"body": "a"}\n', "`{}:1` has no field `text`; it has `body`"),
        ('{"text": "a"\n', "`{}:1` is not JSON"),
    ],
)
def test_what_cannot_be_prepared_is_said_with_its_line_and_nothing_stays(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(text)
    with pytest.raises(RunError) as caught:
        prepare([path], tmp_path / "out.bin", plain_encoder(None))
    assert caught.value.code == "SH0651" and said.format(path) in caught.value.message
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_tokenizer_without_an_end_must_be_told_one(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "own")
    assert encoder_of(folder).end == 105 and encoder_of(folder, "mat").end == 104
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "sat"}}')
    assert encoder_of(folder).end == 102 and encoder_of(folder, ends=False).end is None
    with pytest.raises(RunError, match="has no token `dog`"):
        encoder_of(folder, "dog")
    with pytest.raises(RunError, match="there is no tokenizer at"):
        encoder_of(tmp_path / "none")


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "out.bin", [[1, 2, 3]])
    with at_most(1 << 16), pytest.raises(RunError, match="cannot write") as caught:
        write(path, [[7] * (1 << 16)])
    assert caught.value.code == "SH0609"
    assert made(path) == [[1, 2, 3]] and len(list(tmp_path.iterdir())) == 2


def megatron(path: Path, documents: list[list[list[int]]]) -> None:
    """Megatron's pair of files, of documents of sequences."""
    sequences = [ids for document in documents for ids in document]
    np.concatenate(sequences).astype("<u2").tofile(path)
    lengths = np.array([len(ids) for ids in sequences], dtype="<i4")
    begins = (2 * (np.cumsum(lengths) - lengths)).astype("<i8")
    counts = np.array([0, *np.cumsum([len(document) for document in documents])], dtype="<i8")
    head = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, len(lengths), len(counts))
    raw = b"".join(part.tobytes() for part in (lengths, begins, counts))
    path.with_suffix(".idx").write_bytes(head + raw)


def test_arrays_and_the_files_of_megatron_are_read(tmp_path: Path) -> None:
    rows = np.array([[3, 1, 2], [9, 8, 7]], dtype=np.int32)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "row.npy", rows.reshape(-1).astype(np.uint16))
    assert made(tmp_path / "rows.npy") == rows.tolist()
    assert made(tmp_path / "row.npy") == [rows.reshape(-1).tolist()]
    megatron(tmp_path / "m.bin", [[[1, 2], [3]], [[500, 5, 6]]])
    assert made(tmp_path / "m.bin") == [[1, 2, 3], [500, 5, 6]]
    np.save(tmp_path / "float.npy", rows.astype(np.float32))
    with pytest.raises(RunError, match=r"an array of float32 of the shape \[2, 3\]"):
        open_tokens(tmp_path / "float.npy")
    (tmp_path / "empty.npy").touch()
    with pytest.raises(RunError, match="is no whole array of numpy's"):
        open_tokens(tmp_path / "empty.npy")


def test_a_file_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", [[1] * 100, [2] * 50])
    index = tmp_path / "a.bin.index"
    whole, raw = path.read_bytes(), index.read_bytes()
    for kept, said in ((whole[:-2], "has 298 bytes, and its tokens take 300: it was cut short"),
                       (whole + b"12", "has 302 bytes, and its index says 300")):  # fmt: skip
        path.write_bytes(kept)
        with pytest.raises(RunError, match=said):
            open_tokens(path)
    path.write_bytes(whole)
    for kept, said in ((raw[:-8], "was cut short"), (b"{}" + raw[2:], "no index of tokens")):
        index.write_bytes(kept)
        with pytest.raises(RunError, match=said) as caught:
            open_tokens(path)
        assert caught.value.code == "SH0651" and caught.value.help
    index.unlink()
    with pytest.raises(RunError, match=r"has no index `a\.bin\.index` beside it"):
        open_tokens(path)
    path.unlink()
    with pytest.raises(RunError, match=r"cannot read .*a\.bin`: no such file"):
        open_tokens(path)


def test_a_file_that_is_cut_or_removed_while_it_is_read(tmp_path: Path) -> None:
    """What is mapped beyond the end of a file kills a process; a removed one stays readable."""
    tokens = open_tokens(write(tmp_path / "a.bin", [list(range(200))] * 100))
    far = np.array([19_999])
    (tmp_path / "a.bin").rename(tmp_path / "b.bin")
    assert tokens.read(far).tolist() == [199]
    os.truncate(tmp_path / "b.bin", 4096)
    with pytest.raises(RunError, match="4,096 bytes, and its tokens take 40,000") as caught:
        tokens.read(far)
    assert caught.value.code == "SH0651"


def samples(path: Path, how: str, *more: Input, known: int = 300) -> TokenSamples:
    """Windows of four tokens, of two rows in a batch."""
    assert how in ("", "packed", "documents")
    return TokenSamples(open_tokens(path), (*BOTH, *more), known, how)  # type: ignore[arg-type]


DOCUMENTS = [[1, 2, 3, 4, 5], [6], [], [7, 8, 9], [10, 11, 12, 13]]


def test_packed_windows_keep_documents_apart(tmp_path: Path) -> None:
    more = (Input("position_ids"), Input("segment_ids"), Input("attention_mask", (2, 1, 4, 4)))
    found = samples(write(tmp_path / "a.bin", DOCUMENTS), "packed", *more)
    names = ("input_ids", "labels", "position_ids", "segment_ids", "attention_mask")
    made = found.read(np.array([1, 2]), names)
    assert len(found) == 3
    assert made["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 11, 12]]
    assert made["labels"].tolist() == [[-100, -100, -100, 8], [-100, -100, 11, 12]]
    assert made["position_ids"].tolist() == [[0, 0, 0, 1], [0, 0, 1, 2]]
    assert made["segment_ids"].tolist() == [[1, 2, 3, 3], [1, 2, 2, 2]]
    assert made["attention_mask"][0, 0].tolist() == [
        [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1],
    ]  # fmt: skip
    added = samples(tmp_path / "a.bin", "packed", Input("attention_mask", (2, 1, 4, 4), torch.half))
    mask = added.read(np.array([1]), ["attention_mask"])["attention_mask"]
    low = torch.finfo(torch.half).min
    assert mask[0, 0, 3].tolist() == [low, low, 0, 0]


def test_documents_alone_are_filled_up(tmp_path: Path) -> None:
    more = (Input("attention_mask"), Input("position_ids"))
    found = samples(write(tmp_path / "a.bin", DOCUMENTS), "documents", *more)
    made = found.read(np.arange(5), ("input_ids", "labels", "attention_mask", "position_ids"))
    assert len(found) == 5
    assert made["input_ids"].tolist() == [
        [1, 2, 3, 4], [5, 0, 0, 0], [6, 0, 0, 0], [7, 8, 9, 0], [10, 11, 12, 13],
    ]  # fmt: skip
    assert made["labels"][1].tolist() == [5, -100, -100, -100]
    assert made["attention_mask"].sum(1).tolist() == [4, 1, 1, 3, 4]
    assert made["position_ids"][0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("how", "more", "said"),
    [
        ("packed", (), "and the model takes neither"),
        ("packed", (Input("attention_mask"), Input("position_ids")), "an `attention_mask` of two"),
        ("", (Input("mask"),), "and the model takes `mask`"),
        ("", (Input("position_ids", (2, 5)),), "takes it as int64 of 2 x 5"),
        ("", (Input("segment_ids", (2, 4), torch.float32),), "takes it as float32 of 2 x 4"),
    ],
)
def test_inputs_that_tokens_do_not_give_are_refused(
    tmp_path: Path, how: str, more: tuple[Input, ...], said: str
) -> None:
    path = write(tmp_path / "a.bin", DOCUMENTS)
    with pytest.raises(RunError) as caught:
        samples(path, how, *more)
    assert caught.value.code == "SH0605" and said in caught.value.message


def test_tokens_that_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", [[1] * 8, [2, 13, 1, 1]])
    with pytest.raises(RunError, match="holds the token 13, and the model knows 13"):
        samples(path, "", known=13)
    np.save(tmp_path / "a.npy", np.array([1, 1, 1, 1, 13, 1, 1, 1]))
    plain = samples(tmp_path / "a.npy", "", known=13)
    plain.read(np.array([0]), ["labels"])
    with pytest.raises(RunError, match="holds the token 13") as caught:
        plain.read(np.array([1]), ["labels"])
    assert caught.value.code == "SH0652"
    with pytest.raises(RunError, match="an id is 300, and there are 300"):
        write(tmp_path / "b.bin", [[300]])


def test_a_crash_between_the_two_names_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no moment does an index stand beside tokens that are not its own."""
    path = write(tmp_path / "a.bin", [[1, 2, 3]])
    moved = Path.replace

    def once(self: Path, target: Path) -> Path:
        if target.suffix == ".index":
            raise KeyboardInterrupt
        return moved(self, target)

    monkeypatch.setattr(Path, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        write(path, [[4, 5, 6]])
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    with pytest.raises(RunError, match=r"has no index `a\.bin\.index` beside it"):
        open_tokens(path)
    monkeypatch.undo()
    assert made(write(path, [[4, 5, 6]])) == [[4, 5, 6]]


def test_the_tokens_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    declared = InputSpec("input_ids", torch.int64, (2, 4), below=300)
    compiled: Any = SimpleNamespace(source=HfSource(folder), inputs=(declared,))
    (tmp_path / "text").write_text("the cat sat on the mat " * 4)
    out = tmp_path / "out.bin"
    prepare([tmp_path / "text"], out, encoder_of(folder))
    assert len(samples_of(compiled, DataDecl(out))) == 6
    prepare([tmp_path / "text"], out, encoder_of(tokenizer(tmp_path / "other", 7)))
    with pytest.raises(RunError, match="made by another tokenizer than the model's") as caught:
        samples_of(compiled, DataDecl(out))
    assert caught.value.code == "SH0652"
    for stated, said in (
        (DataDecl(out, split="test"), "`split` names a part of a data set"),
        (DataDecl(tmp_path, cut="packed"), "`packed` cuts tokens, and the rows"),
        (DataDecl(out, labels="y"), "declares no input `y`"),
    ):
        with pytest.raises(RunError, match=said):
            samples_of(compiled, stated)


MODEL = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 4), nn.Linear(4, 11)

    def forward(self, ids, labels):
        logits = self.head(self.embed(ids)).flatten(0, 1)
        return {"loss": nn.functional.cross_entropy(logits, labels.flatten())}
"""
STATED = """
mesh { dp = 1 }
model "m.py:Model"
input ids, labels : i64[5, 4] below 11 [dp, _]
data "tokens.npy" (ids = "ids", labels = "labels")
"""


def test_a_run_is_resumed_in_its_data_and_refused_beside_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.py").write_text(MODEL)
    (tmp_path / "m.shard").write_text(STATED)
    drawn = np.random.RandomState(0).randint(0, 11, 93).astype(np.uint8)
    np.save(tmp_path / "tokens.npy", drawn)

    def run(steps: int, *more: str) -> list[dict[str, Any]]:
        execute(["run", str(tmp_path / "m.shard"), "--json", "--steps", str(steps), *more])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    whole = [line["loss"] for line in run(8)[:-1]]
    (tmp_path / "m.shard").write_text(STATED + "checkpoint every 3\n")
    folder = ("--out", str(tmp_path / "out"))
    first = [line["loss"] for line in run(3, *folder)[:-1]]
    later = [line["loss"] for line in run(8, *folder, "--resume")[:-1]]
    assert first + later == whole and len(later) == 5
    np.save(tmp_path / "tokens.npy", drawn[::-1])
    (found,) = run(9, *folder, "--resume")[-1]["diagnostics"]
    assert (found["code"], found["line"]) == ("SH0653", 5)
    (tmp_path / "tokens.npy").unlink()
    (found,) = run(9, *folder, "--resume")[-1]["diagnostics"]
    assert (found["code"], found["line"]) == ("SH0651", 5)


def test_the_rows_of_a_model_of_ones_own_are_its_vocabulary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the input does not say how many tokens it takes."""
    (tmp_path / "m.py").write_text(MODEL)
    (tmp_path / "m.shard").write_text(STATED.replace(" below 11", ""))
    np.save(tmp_path / "tokens.npy", np.arange(40, dtype=np.uint8) % 11)
    command = ["run", str(tmp_path / "m.shard"), "--json", "--steps", "1"]
    assert execute(command) == 0
    np.save(tmp_path / "tokens.npy", np.arange(40, dtype=np.uint8) % 12)
    capsys.readouterr()
    assert execute(command) == 1
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["diagnostics"]
    assert found["code"] == "SH0652"
    assert found["message"].endswith("holds the token 11, and the model knows 11")
    assert "`below 12`" in found["help"]
