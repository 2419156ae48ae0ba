"""A text as tokens: by a tokenizer, or its bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from shardlang.runtime.data.batch import BYTES, Encode
from shardlang.runtime.data.documents import is_text, refuse_packed
from shardlang.runtime.data.order import Numbers
from shardlang.runtime.data.tokens import Ids, Tokens, unreadable
from shardlang.runtime.errors import RunError

FIRST: Numbers = np.zeros(1, dtype=np.int64)
"""Where the only document begins."""


def text_tokens(path: Path, vocabulary: int, encode: Encode | None = None) -> Tokens:
    """The tokens of a text file, as one document in memory.

    Args:
        encode: the model's tokenizer; without one, the tokens are the bytes of the file.

    Raises:
        RunError: SH0651, the file cannot be read; SH0605, the vocabulary does not fit.
    """
    raw = _read(path)
    ids = _bytes(raw, vocabulary) if encode is None else _ids(path, raw, encode)
    largest = int(ids.max()) if ids.size else 0
    digest = hashlib.blake2b(ids.tobytes(), digest_size=16).hexdigest()
    kind = "bytes" if encode is None else ""
    return Tokens(str(path), ids, FIRST, digest, largest, kind)


def _read(path: Path) -> bytes:
    refuse_packed(path)
    if not is_text(path):
        raise RunError(
            "SH0651",
            f"`{path}` holds documents as lines of JSON, or is packed: it is no text",
            help=f"make tokens of it, `shardlang data prepare {path} -o {path.stem}.bin`, and train"
            " on those",
        )
    if path.exists() and not path.is_file():
        help = "check the path of the data"
        raise RunError("SH0651", f"`{path}` is not a regular file", help=help)
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def _bytes(raw: bytes, vocabulary: int) -> Ids:
    if vocabulary < BYTES:
        raise RunError(
            "SH0605",
            f"a text has {BYTES} kinds of bytes, and the model knows {vocabulary} tokens",
            help=f"give the model a vocabulary of at least {BYTES}; or declare the input"
            f" `below {BYTES}`, if it has one",
        )
    return np.frombuffer(raw, dtype=np.uint8)


def _ids(path: Path, raw: bytes, encode: Encode) -> Ids:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunError(
            "SH0651",
            f"`{path}` is not UTF-8 text: byte {error.start} is none",
            help="convert it, since the model's tokenizer reads text",
        ) from None
    return np.array(encode(text), dtype=np.int64)
