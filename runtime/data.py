"""Batches: the same whole batches for every mesh, of which each device takes its shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from shardlang.runtime.errors import RunError

Batch = Mapping[str, object]
"""Tensors by dotted input name, and whatever else the model is called with."""

BYTES = 256
IDS, LABELS = "input_ids", "labels"


Encode = Callable[[str], Sequence[int]]
"""A tokenizer: the ids of a text."""


def text_batches(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    vocabulary: int,
    seed: int,
    encode: Encode | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Endless batches of a text for a causal language model.

    The tokens are cut into windows of the sequence length, drawn in another order in every epoch;
    labels equal the input ids (the model shifts them).

    Args:
        shapes: shape of every input that the model declares, `b s` for the ids and labels.
        encode: the model's tokenizer; without one, the tokens are the bytes of the file.

    Raises:
        RunError: SH0605, the file, the vocabulary or the inputs do not fit.
    """
    b, s = _check(shapes)
    raw = _read(path)
    tokens = _bytes(raw, vocabulary) if encode is None else _ids(path, raw, vocabulary, encode)
    if len(tokens) < b * s:
        kind = "bytes" if encode is None else "tokens"
        raise RunError(
            "SH0605",
            f"`{path}` holds {len(tokens)} {kind}, and one batch of {b} x {s} needs {b * s}",
            help="give a longer text, or make the batch smaller",
        )
    windows = tokens[: len(tokens) // s * s].view(-1, s)
    return _draw(windows, b, seed, tuple(shapes))


def _read(path: Path) -> bytes:
    help = "check the path of `--data`"
    if path.exists() and not path.is_file():
        raise RunError("SH0605", f"`{path}` is not a regular file", help=help)
    try:
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RunError("SH0605", f"cannot read `{path}`: {reason}", help=help) from error


def _bytes(raw: bytes, vocabulary: int) -> Tensor:
    if vocabulary < BYTES:
        raise RunError(
            "SH0605",
            f"a text has {BYTES} kinds of bytes, and the model knows {vocabulary} tokens",
            help=f"give the model a vocabulary of at least {BYTES}",
        )
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0)


def _ids(path: Path, raw: bytes, vocabulary: int, encode: Encode) -> Tensor:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunError(
            "SH0605",
            f"`{path}` is not UTF-8 text: byte {error.start} is none",
            help="convert it, since the model's tokenizer reads text",
        ) from None
    tokens = torch.tensor(encode(text), dtype=torch.long)
    if len(tokens) and int(tokens.max()) >= vocabulary:
        raise RunError(
            "SH0605",
            f"the tokenizer gives the token {int(tokens.max())}, and the model knows {vocabulary}",
            help="use the tokenizer that belongs to the model",
        )
    return tokens


def _check(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Batch size and sequence length, if the model takes a text."""
    others = sorted(set(shapes) - {IDS, LABELS})
    if others or IDS not in shapes or len(shapes[IDS]) != 2:
        named = ", ".join(f"`{name}`" for name in others or shapes)
        raise RunError(
            "SH0605",
            f"a text gives `{IDS}` and `{LABELS}` of two dims, and the model takes {named}",
            help="leave out `--data`, or train through the Python interface",
        )
    b, s = shapes[IDS]
    return b, s


def _draw(
    windows: Tensor, b: int, seed: int, names: tuple[str, ...]
) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(windows), generator=generator)
        for rows in torch.split(order, b):
            if len(rows) == b:
                ids = windows[rows].long()
                yield {name: ids for name in names}
