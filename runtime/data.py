"""Batches: the same whole batches for every mesh, of which each device takes its piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from shardlang.runtime.errors import RunError

Batch = Mapping[str, Tensor]

BYTES = 256
IDS, LABELS = "input_ids", "labels"


def byte_batches(
    path: Path, shapes: Mapping[str, tuple[int, ...]], vocabulary: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Endless batches for a causal language model whose tokens are the bytes of a file.

    The file is cut into windows of the sequence length, drawn in another order in every epoch;
    labels equal the input ids (the model shifts them).

    Args:
        shapes: shape of every input that the model declares, `b s` for the ids and labels.

    Raises:
        RunError: SH0605, the file, the vocabulary or the inputs do not fit.
    """
    b, s = _check(shapes, vocabulary)
    try:
        text = bytearray(path.read_bytes())
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            "SH0605", f"cannot read `{path}`: {reason.lower()}", help="check the path of `--data`"
        ) from error
    if len(text) < b * s:
        raise RunError(
            "SH0605",
            f"`{path}` holds {len(text)} bytes, and one batch of {b} x {s} needs {b * s}",
            help="give a longer text, or make the batch smaller",
        )
    windows = torch.frombuffer(text, dtype=torch.uint8)[: len(text) // s * s].view(-1, s)
    return _draw(windows, b, seed, tuple(shapes))


def _check(shapes: Mapping[str, tuple[int, ...]], vocabulary: int) -> tuple[int, int]:
    """Batch size and sequence length, if the model takes byte tokens."""
    others = sorted(set(shapes) - {IDS, LABELS})
    if others or IDS not in shapes or len(shapes[IDS]) != 2:
        named = ", ".join(f"`{name}`" for name in others or shapes)
        raise RunError(
            "SH0605",
            f"a text gives `{IDS}` and `{LABELS}` of two dims, and the model takes {named}",
            help="leave out `--data`, or train through the Python interface",
        )
    if vocabulary < BYTES:
        raise RunError(
            "SH0605",
            f"a text has {BYTES} kinds of bytes, and the model knows {vocabulary} tokens",
            help=f"give the model a vocabulary of at least {BYTES}",
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
