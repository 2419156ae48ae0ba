"""Megatron's pair of files: `corpus.bin` and an index, `corpus.idx`.

The index is `MMIDIDX`, two zeros, a version (u64), a code of the type (u8), the numbers of
sequences and of places of documents (u64 each), the lengths of sequences (i32), where each begins
in bytes (i64), and the number of the sequence with which each document begins (i64), ended by that
of all.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from shardlang.runtime.data.order import Numbers
from shardlang.runtime.data.tokens import Mapped, unreadable
from shardlang.runtime.errors import RunError

SUFFIX = ".idx"
_MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<9sQBQQ")
_DTYPES = {1: "uint8", 4: "int32", 5: "int64", 8: "uint16"}


def read_megatron(path: Path) -> tuple[str, int, Numbers]:
    """The type of the ids, how many there are, and where documents begin.

    Raises:
        RunError: SH0651, it is no such index, or is cut short.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(head) < _HEAD.size or head[:9] != _MAGIC or head[17] not in _DTYPES:
        raise RunError(
            "SH0651",
            f"`{path}` is no index of Megatron's with ids in {', '.join(_DTYPES.values())}",
            help="make the data again: `shardlang data prepare`",
        )
    _, _, code, sequences, documents = _HEAD.unpack(head)
    at_begins = _HEAD.size + 4 * sequences
    at_documents = at_begins + 8 * sequences
    Mapped(path, at_documents + 8 * documents).close()
    lengths = np.fromfile(path, "<i4", sequences, offset=_HEAD.size)
    ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
    first = np.fromfile(path, "<i8", documents, offset=at_documents)
    return _DTYPES[code], int(ends[-1]), ends[first[:-1]]
