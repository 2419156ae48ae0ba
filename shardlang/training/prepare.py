"""From texts to a file of tokens, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from shardlang.runtime.data import Header, Piece, TokenWriter, pieces_of
from shardlang.runtime.errors import RunError
from shardlang.training.encoders import Encode, Encoder

_MOST_PIECES, _MOST_CHARACTERS = 1024, 1 << 20


def prepare(
    inputs: Sequence[Path],
    target: Path,
    encoder: Encoder,
    field: str = "text",
    note: Callable[[int, int], None] = lambda documents, tokens: None,
) -> Header:
    """Write the documents of some files into a file of tokens, one after the other.

    Args:
        field: what holds the text, or ids, in lines of JSON and in tables.
        note: told now and then how many documents and tokens are written.

    Raises:
        RunError: SH0651, an input cannot be read; SH0652, its ids are not the tokenizer's; SH0609,
            the target cannot be written.
    """
    raw = encoder.fingerprint == "bytes"
    pieces = chain.from_iterable(pieces_of(path, field, raw) for path in inputs)
    with TokenWriter(target, encoder.vocabulary, encoder.fingerprint, encoder.end) as writer:
        for some in _batches(pieces):
            for ids, piece in zip(_encoded(some, encoder.encode), some, strict=True):
                writer.add(ids, piece.ends)
            note(writer.documents, writer.tokens)
        return writer.commit()


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces together that are encoded at once."""
    some: list[Piece] = []
    size = 0
    for piece in pieces:
        some.append(piece)
        size += len(piece.content)
        if len(some) == _MOST_PIECES or size >= _MOST_CHARACTERS:
            yield some
            some, size = [], 0
    if some:
        yield some


def _encoded(pieces: list[Piece], encode: Encode | None) -> list[Sequence[int]]:
    texts = [piece.content for piece in pieces if isinstance(piece.content, str)]
    if texts and encode is None:
        raise RunError(
            "SH0651",
            "the documents are texts, and `--vocabulary` is for ids",
            help="give a tokenizer by `--tokenizer`, or name the field that holds ids",
        )
    ids = iter(encode(texts) if encode is not None and texts else [])
    return [next(ids) if isinstance(piece.content, str) else piece.content for piece in pieces]
