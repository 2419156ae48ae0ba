"""The files of one checkpoint as `torch.distributed.checkpoint` writes and reads them.

What is written is counted and hashed on its way, so that no file is read again for its checksum.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
from collections.abc import Generator
from contextlib import contextmanager
from typing import IO

from torch.distributed.checkpoint.filesystem import (
    FileSystemBase,
    FileSystemReader,
    FileSystemWriter,
)

from shardlang.runtime.checkpoint.folders import Folder
from shardlang.runtime.checkpoint.manifest import File

Path = str | os.PathLike[str]


class Hashed(io.RawIOBase):
    """A file that is written: its bytes are counted and hashed.

    Attributes:
        failure: why a write failed; `torch.save` says that something else went wrong.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file, self._hash, self._count = file, hashlib.sha256(), 0
        self.failure: OSError | None = None

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: object) -> int:
        """Write bytes, all of them."""
        block = memoryview(data).cast("B")  # type: ignore[arg-type]
        try:
            self._file.write(block)
        except OSError as error:
            self.failure = error
            raise
        self._hash.update(block)
        self._count += len(block)
        return len(block)

    def tell(self) -> int:
        """How many bytes were written."""
        return self._count

    def named(self, name: str) -> File:
        """What a manifest says of it."""
        return File(name, self._count, self._hash.hexdigest())


class Files(FileSystemBase):
    """A folder within that of the checkpoints.

    Attributes:
        written: what this process has written, by name.
    """

    def __init__(self, folder: Folder, at: str) -> None:
        self._folder, self._at = folder, at
        self.written: dict[str, File] = {}

    @contextmanager
    def create_stream(self, path: Path, mode: str) -> Generator[io.IOBase, None, None]:
        """A file; one that was written is on the disk when it is closed."""
        with self._folder.open(os.fspath(path), mode) as file:
            if mode != "wb":
                yield file  # type: ignore[misc]
                return
            hashed = Hashed(file)
            try:
                yield hashed
            except Exception:
                if hashed.failure is not None:
                    raise hashed.failure from None
                raise
            self._folder.sync(file)
        name = posixpath.relpath(os.fspath(path), self._at)
        self.written[name] = hashed.named(name)

    def write(self, name: str, text: str) -> None:
        """Write a file of text."""
        with self.create_stream(self.concat_path(self._at, name), "wb") as file:
            file.write(text.encode())

    def read(self, name: str) -> str:
        """The text of a file."""
        with self._folder.open(posixpath.join(self._at, name), "rb") as file:
            return file.read().decode()

    def concat_path(self, path: Path, suffix: str) -> str:
        """The path of a file in it."""
        return posixpath.join(os.fspath(path), suffix)

    def rename(self, path: Path, new_path: Path) -> None:
        """Give a file its last name."""
        before, after = (os.path.relpath(os.fspath(x), self._at) for x in (path, new_path))
        self._folder.rename(os.fspath(path), os.fspath(new_path))
        made = self.written.pop(before)
        self.written[after] = File(after, made.size_bytes, made.sha256)

    def init_path(self, path: Path) -> str:
        """The path as it is used here."""
        return os.fspath(path)

    def mkdir(self, path: Path) -> None:
        """Make the folder."""
        self._folder.make(os.fspath(path))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Path) -> bool:
        """It is never asked to choose a place."""
        return True

    def exists(self, path: Path) -> bool:
        """Whether there is such a file."""
        return self._folder.size_bytes(os.fspath(path)) is not None

    def rm_file(self, path: Path) -> None:
        """Remove a file."""
        self._folder.remove(os.fspath(path))


def writer_to(files: Files, at: str) -> FileSystemWriter:
    """What writes a checkpoint into a folder; each file is on the disk when it is closed."""
    writer = FileSystemWriter(at, sync_files=False)
    writer.fs, writer.path = files, at  # type: ignore[assignment]
    return writer


def reader_of(files: Files, at: str) -> FileSystemReader:
    """What reads a checkpoint from a folder."""
    reader = FileSystemReader(at)
    reader.fs, reader.path = files, at  # type: ignore[assignment]
    return reader
