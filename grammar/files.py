"""Reading files that somebody else named: regular ones only, and none without an end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

LARGEST_BYTES = 2**20
"""The largest spec that is read, 1 MiB."""


class UnreadableError(ValueError):
    """A file that is not read; the message says why, in lower case."""


def read_text(path: Path, largest_bytes: int = LARGEST_BYTES) -> str:
    """The text of a regular file of UTF-8 (a mark of its order may stand first).

    Raises:
        UnreadableError: it does not exist, may not be read, is a device, a pipe, a socket or a
            folder, is too large, or does not hold UTF-8.
    """
    return decoded(_read(path, largest_bytes), largest_bytes)


def decoded(data: bytes, largest_bytes: int = LARGEST_BYTES) -> str:
    """Bytes as text. Raises `UnreadableError` for more than the largest file, and for no UTF-8."""
    if len(data) > largest_bytes:
        raise UnreadableError(f"it is larger than {largest_bytes // 2**20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise UnreadableError(f"byte {fault.start} is not UTF-8") from None


def _read(path: Path, largest_bytes: int) -> bytes:
    """One byte more than the largest file has, at most."""
    try:
        _check_kind(os.stat(path).st_mode)  # noqa: PTH116 a device must not be opened to be looked at
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            _check_kind(os.fstat(file.fileno()).st_mode)
            return file.read(largest_bytes + 1)
    except OSError as fault:
        raise UnreadableError((fault.strerror or str(fault)).lower()) from None


def _check_kind(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UnreadableError("is a directory")
    if not stat.S_ISREG(mode):
        raise UnreadableError("it is not a regular file")
