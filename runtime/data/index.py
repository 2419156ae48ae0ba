"""The index beside a file of tokens: what they are, and where documents begin.

`corpus.bin` holds ids of one type, little end first, and nothing else. `corpus.bin.index` begins
with one line of JSON, filled up with spaces to a multiple of 64 bytes, so that `head -1` shows it;
the place of the first token of each document follows, as 64-bit integers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from shardlang.runtime.data.order import Numbers
from shardlang.runtime.data.tokens import Mapped, unreadable
from shardlang.runtime.errors import RunError

SUFFIX = ".index"
FORMAT = "shardlang tokens 1"
DTYPES = ("uint8", "uint16", "uint32", "int32", "int64")
"""The types of ids that are read."""

_ALIGNED, _LONGEST = 64, 1 << 20


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of an index.

    Attributes:
        dtype: the type of the ids, one of `DTYPES`.
        tokens, documents: how many there are.
        largest: the greatest id.
        vocabulary: how many ids the tokenizer has.
        tokenizer: the fingerprint of the tokenizer, or `bytes`.
        end: the id behind each document; None for none.
        checksum: of all tokens, by which two files are told apart.
    """

    dtype: str
    tokens: int
    documents: int
    largest: int
    vocabulary: int
    tokenizer: str
    end: int | None
    checksum: str

    def line(self) -> bytes:
        """The line, with its end."""
        text = json.dumps({"format": FORMAT, **asdict(self)}).encode()
        return text + b" " * (-(len(text) + 1) % _ALIGNED) + b"\n"


def read_index(path: Path) -> tuple[Header, Numbers]:
    """The index of a file of tokens, with the places of documents mapped into memory.

    Raises:
        RunError: SH0651, it is none, or is cut short.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(_LONGEST)
    except OSError as error:
        raise unreadable(path, error) from error
    header = _parsed(line, path)
    Mapped(path, len(line) + 8 * header.documents).close()
    if not header.documents:
        return header, np.zeros(0, dtype=np.int64)
    starts = np.memmap(path, "<i8", mode="r", offset=len(line), shape=(header.documents,))
    return header, starts


def _parsed(line: bytes, path: Path) -> Header:
    try:
        found = json.loads(line)
        if found.pop("format") != FORMAT or found["dtype"] not in DTYPES:
            raise ValueError
        return Header(**{field.name: found[field.name] for field in fields(Header)})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(
            "SH0651",
            f"`{path}` is no index of tokens of this version",
            help="make the data again: `shardlang data prepare`",
        ) from None
