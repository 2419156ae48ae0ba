"""A row of tokens, cut into documents: in memory, or mapped from a file."""

from __future__ import annotations

import hashlib
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from shardlang.runtime.data.order import Numbers
from shardlang.runtime.errors import RunError

Ids: TypeAlias = (
    "NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]"
    " | NDArray[np.int16] | NDArray[np.int32] | NDArray[np.int64]"
)
"""Token ids, one dim."""

_PIECES, _PIECE = 64, 4096


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The ids of a text, or of many one after the other.

    Attributes:
        name: the file, for messages.
        starts: where each document begins; the first at 0.
        fingerprint: changes with the tokens.
        largest: the greatest id, where it is known.
        tokenizer: the fingerprint of what made them, `bytes` for none, empty if it is unknown.
        file: the file that they are mapped from, if they are.
    """

    name: str
    ids: Ids
    starts: Numbers
    fingerprint: str
    largest: int | None = None
    tokenizer: str = ""
    file: Mapped | None = None

    def __len__(self) -> int:
        return int(self.ids.size)

    def read(self, places: Numbers) -> Numbers:
        """The ids at some places, in the shape of `places`.

        Raises:
            RunError: SH0651, the file has become shorter: what is mapped beyond its end cannot be
                read.
        """
        if self.file is not None:
            self.file.check()
        return self.ids[places].astype(np.int64)


class Mapped:
    """A file that is mapped into memory; one that is removed or replaced stays readable."""

    def __init__(self, path: Path, wanted: int) -> None:
        """Open it.

        Args:
            wanted: of how many bytes it must be.

        Raises:
            RunError: SH0651, it cannot be read or is shorter.
        """
        self.path, self.wanted = path, wanted
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise unreadable(path, error) from error
        self._close = weakref.finalize(self, os.close, self._file)
        self.check()

    def close(self) -> None:
        """Let go of it."""
        self._close()

    def check(self) -> None:
        """Look whether all of it is there; to read beyond the end of a mapped file kills a process.

        Raises:
            RunError: SH0651, it is shorter than it was.
        """
        found = os.fstat(self._file).st_size
        if found < self.wanted:
            raise RunError(
                "SH0651",
                f"`{self.path}` has {found:,} bytes, and its tokens take {self.wanted:,}: it was"
                " cut short",
                help="copy it anew, or make it again by `shardlang data prepare`",
            )


def unreadable(path: Path, error: OSError) -> RunError:
    """The error for a data file that the system does not give."""
    reason = (error.strerror or str(error)).lower()
    return RunError(
        "SH0651",
        f"cannot read `{path}`: {reason}",
        help="check the path of the data",
    )


def check_largest(name: str, largest: int, vocabulary: int) -> None:
    """Refuse a token that the model does not know.

    Raises:
        RunError: SH0652.
    """
    if largest >= vocabulary:
        raise RunError(
            "SH0652",
            f"`{name}` holds the token {largest}, and the model knows {vocabulary}",
            help="use the tokenizer that belongs to the model: `shardlang data prepare"
            f" --tokenizer` takes its folder; or declare the input `below {largest + 1}`, if the"
            " model takes as many",
        )


def fingerprint_of(ids: Ids, starts: Numbers, *more: str) -> str:
    """A hash of the sizes, of up to 64 pieces of the tokens, and of what else is said of them."""
    hash = hashlib.blake2b(digest_size=16)
    hash.update(repr((ids.dtype.str, ids.size, starts.size, more)).encode())
    for row in (ids, starts):
        for start in np.linspace(0, max(row.size - _PIECE, 0), _PIECES, dtype=np.int64):
            hash.update(np.ascontiguousarray(row[start : start + _PIECE]).tobytes())
    return hash.hexdigest()
