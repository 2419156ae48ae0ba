"""Writing a file of tokens with its index: all of it, or nothing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from shardlang.runtime.data import index
from shardlang.runtime.data.batch import BYTES
from shardlang.runtime.data.index import Header
from shardlang.runtime.errors import RunError


class _Draft(NamedTuple):
    """A file that is being written."""

    file: BinaryIO
    path: Path

    def to_disk(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())


class TokenWriter:
    """Takes documents piece by piece; a context manager that leaves nothing where it fails.

    Tokens and the places of documents go to files beside the target, whose names take its place
    when all is on the disk. Of an older file the index goes first: so at no moment does an index
    stand beside tokens that are not its own.
    """

    def __init__(
        self, target: Path, vocabulary: int, tokenizer: str, end: int | None = None
    ) -> None:
        """Open the files.

        Args:
            vocabulary: how many ids there are; decides their type.
            tokenizer: the fingerprint of what makes the ids, or `bytes`.
            end: the id that is put behind each document.

        Raises:
            RunError: SH0609, the folder cannot be written to.
        """
        self._target, self._vocabulary = target, vocabulary
        self._tokenizer, self._end = tokenizer, end
        small, middle = vocabulary <= BYTES, vocabulary <= 1 << 16
        self._dtype = np.dtype("u1" if small else "<u2" if middle else "<u4")
        self._hash = hashlib.blake2b(digest_size=16)
        self.tokens = self.documents = self._largest = 0
        self._within = False
        with contextlib.ExitStack() as opened:
            self._ids = opened.enter_context(_beside(target, "ids"))
            self._starts = opened.enter_context(_beside(target, "starts"))
            self._opened = opened.pop_all()

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def add(self, ids: Sequence[int], ends: bool = True) -> None:
        """The next ids of a document, which ends with them or goes on.

        Raises:
            RunError: SH0652, an id is not below the vocabulary; SH0609, the disk is full.
        """
        plain = np.frombuffer(ids, dtype=np.uint8) if isinstance(ids, bytes) else np.array(ids)
        row = plain.astype(np.int64)
        if ends and self._end is not None:
            row = np.append(row, self._end)
        if row.size and (row.max() >= self._vocabulary or row.min() < 0):
            wrong = int(row.max() if row.max() >= self._vocabulary else row.min())
            raise RunError(
                "SH0652",
                f"an id is {wrong}, and there are {self._vocabulary}",
                help="give the tokenizer that made the ids, or one of all of its tokens",
            )
        if not self._within:
            self._write(self._starts.file, np.array([self.tokens], dtype="<i8").tobytes())
            self.documents += 1
        self._within = not ends
        raw = row.astype(self._dtype).tobytes()
        self._hash.update(raw)
        self._write(self._ids.file, raw)
        self.tokens += row.size
        self._largest = max(self._largest, int(row.max(initial=0)))

    def _write(self, file: BinaryIO, raw: bytes) -> None:
        try:
            file.write(raw)
        except OSError as error:
            raise _unwritable(self._target, error) from error

    def commit(self) -> Header:
        """Bring all to the disk, and give the files their names.

        Raises:
            RunError: SH0609, the disk is full, or the folder cannot be written to.
        """
        header = Header(
            self._dtype.name, self.tokens, self.documents, self._largest, self._vocabulary,
            self._tokenizer, self._end, self._hash.hexdigest(),
        )  # fmt: skip
        beside = self._target.with_name(self._target.name + index.SUFFIX)
        try:
            with _beside(self._target, "index") as indexed:
                indexed.file.write(header.line())
                self._starts.file.seek(0)
                shutil.copyfileobj(self._starts.file, indexed.file)
                self._ids.to_disk()
                indexed.to_disk()
                beside.unlink(missing_ok=True)
                self._ids.path.replace(self._target)
                indexed.path.replace(beside)
        except OSError as error:
            raise _unwritable(self._target, error) from error
        return header


@contextlib.contextmanager
def _beside(target: Path, what: str) -> Iterator[_Draft]:
    """A new file in the folder of another, which is removed if it keeps its name."""
    path = target.with_name(f".{target.name}.{os.getpid()}.{what}.partial")
    try:
        file = path.open("w+b")
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield _Draft(file, path)
    finally:
        with contextlib.suppress(OSError):
            file.close()
        path.unlink(missing_ok=True)


def _unwritable(target: Path, error: OSError) -> RunError:
    reason = (error.strerror or str(error)).lower()
    help = "make room" if error.errno == errno.ENOSPC else "choose a folder that can be written to"
    return RunError("SH0609", f"cannot write `{target}`: {reason}", help=help)
