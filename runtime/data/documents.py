"""The documents of files, in pieces that fit into memory: of texts, lines of JSON and tables."""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple

from shardlang.runtime.data.tables import SUFFIXES, column
from shardlang.runtime.data.tokens import unreadable
from shardlang.runtime.errors import RunError

PIECE = 1 << 20
"""Bytes of a text that are taken at once, up to the next end of a line."""


class Piece(NamedTuple):
    """A part of a document, as text, as bytes or as ids, and whether the document ends with it."""

    content: str | bytes | Sequence[int]
    ends: bool


LINES = (".jsonl", ".ndjson")
"""The names of files of documents as lines of JSON end so."""

PACKED = (".npz", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".pt", ".pth", ".pkl")
"""The names of files end so whose bytes are those of something packed, which is not unpacked."""


def refuse_packed(path: Path) -> None:
    """Refuse a file that is packed: its bytes are no text.

    Raises:
        RunError: SH0651.
    """
    if path.suffix.lower() in PACKED:
        raise RunError(
            "SH0651",
            f"`{path}` is packed, and is not read as a text",
            help="unpack it: one array of ids as `.npy`, texts as files of their own",
        )


def is_text(path: Path) -> bool:
    """Whether a file is a text as it is, by its name: neither lines of JSON, nor packed."""
    return path.suffix not in (*LINES, ".gz")


def pieces_of(path: Path, field: str, raw: bool = False) -> Iterator[Piece]:
    """The documents of a file, piece by piece.

    Args:
        field: what holds the text, or ids, in a line of JSON (`.jsonl`) or a table (`.parquet`,
            `.arrow`). Any other file is a text, and one document. A `.gz` is unpacked.
        raw: whether a text is read as bytes.

    Raises:
        RunError: SH0651, the file cannot be read, or is not what its name says.
    """
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    refuse_packed(path)
    if kind in SUFFIXES:
        return _column(path, field, raw)
    return _lines(path, field, raw) if kind in LINES else _text(path, raw)


def _column(path: Path, field: str, raw: bool) -> Iterator[Piece]:
    for content in column(path, field):
        yield Piece(content.encode() if raw and isinstance(content, str) else content, True)


def _opened(path: Path) -> BufferedIOBase:
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "not a regular file")
        return gzip.open(path) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error


def _text(path: Path, raw: bool) -> Iterator[Piece]:
    """A text, cut at ends of lines; one piece is always kept back, to know which is the last."""
    with _opened(path) as file:
        chunks = _chunks(path, file)
        pieces: Iterator[str | bytes] = chunks if raw else _decoded(path, chunks)
        last = next(pieces, None)
        for piece in pieces:
            assert last is not None
            yield Piece(last, False)
            last = piece
        if last is not None:
            yield Piece(last, True)


def _chunks(path: Path, file: BufferedIOBase) -> Iterator[bytes]:
    try:
        while chunk := file.read(PIECE):
            yield chunk + file.readline(PIECE)
    except (OSError, EOFError) as error:
        failure = error if isinstance(error, OSError) else OSError(0, str(error))
        raise unreadable(path, failure) from error


def _decoded(path: Path, chunks: Iterator[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    before = 0
    for chunk in itertools.chain(chunks, [b""]):
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise RunError(
                "SH0651",
                f"`{path}` is not UTF-8 text, near byte {before + error.start}",
                help="convert it, since a tokenizer reads text",
            ) from None
        before += len(chunk)
        if text:
            yield text


def _lines(path: Path, field: str, raw: bool) -> Iterator[Piece]:
    """The documents of lines of JSON."""
    with _opened(path) as file:
        for number, line in enumerate(_whole_lines(path, file), start=1):
            if line.strip():
                found = _field(line, field, f"{path}:{number}")
                yield Piece(found.encode() if raw and isinstance(found, str) else found, True)


def _whole_lines(path: Path, file: BufferedIOBase) -> Iterator[bytes]:
    try:
        yield from file
    except (OSError, EOFError) as error:
        failure = error if isinstance(error, OSError) else OSError(0, str(error))
        raise unreadable(path, failure) from error


def _field(line: bytes, field: str, place: str) -> str | list[int]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        help = "write one JSON object on each line"
        raise RunError("SH0651", f"`{place}` is not JSON: {reason}", help=help) from None
    if not isinstance(document, dict) or field not in document:
        known = ", ".join(f"`{key}`" for key in document) if isinstance(document, dict) else "none"
        raise RunError(
            "SH0651",
            f"`{place}` has no field `{field}`; it has {known}",
            help="name the one that holds the text: `--field NAME`",
        )
    found = document[field]
    ids = isinstance(found, list) and all(type(one) is int for one in found)
    if not isinstance(found, str) and not ids:
        raise RunError(
            "SH0651",
            f"`{field}` in `{place}` is neither a text nor a list of ids",
            help="name the one that holds the text: `--field NAME`",
        )
    assert isinstance(found, (str, list))
    return found
