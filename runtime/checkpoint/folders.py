"""The folder of the checkpoints: on disks of this machine, or at a place that `fsspec` knows.

A checkpoint is drafted, and committed at once. A disk renames the draft. Other places cannot rename
a folder: there the manifest, which is written last, commits it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

DRAFT, GONE, OLD = ".draft-", ".gone-", ".old-"
"""How names on a disk begin: of drafts, of checkpoints that are being removed, and of those that a
new one replaces."""

_LOCK = ".saving"


class Folder(Protocol):
    """The files of the checkpoints, by paths relative to the folder."""

    def names(self, under: str = "") -> list[str]:
        """The names in it, or in a folder within; none where there is no such folder."""
        ...

    def make(self, name: str) -> None:
        """Make a folder within, and those above it."""
        ...

    def open(self, name: str, mode: str) -> IO[bytes]:
        """A file, to read (`rb`) or to write (`wb`)."""
        ...

    def sync(self, file: IO[bytes]) -> None:
        """Bring what was written to a file to the disk."""
        ...

    def size_bytes(self, name: str) -> int | None:
        """The size of a file; None where there is none."""
        ...

    def rename(self, name: str, other: str) -> None:
        """Give a file another name."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it, if it is there."""
        ...

    def draft(self, name: str) -> str:
        """Where a checkpoint of that name is drafted."""
        ...

    def commit(self, name: str) -> None:
        """Let the draft of a checkpoint, whose manifest is written, be the checkpoint."""
        ...

    def drafts(self) -> list[str]:
        """What is left of drafts and removals, apart from checkpoints without a manifest."""
        ...

    def restore(self) -> None:
        """Bring back the checkpoints in whose place no new one has come."""
        ...

    def writing(self) -> contextlib.AbstractContextManager[bool]:
        """Whether no other process writes here meanwhile, as far as the place can tell."""
        ...


class Disk:
    """A folder of the file system."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    def __str__(self) -> str:
        return str(self._path)

    def names(self, under: str = "") -> list[str]:
        """The names in it."""
        at = self._path / under
        return sorted(path.name for path in at.iterdir()) if at.is_dir() else []

    def make(self, name: str) -> None:
        """Make a folder within."""
        (self._path / name).mkdir(parents=True, exist_ok=True)

    def open(self, name: str, mode: str) -> IO[bytes]:
        """A file."""
        return open(self._path / name, mode)  # noqa: PTH123

    def sync(self, file: IO[bytes]) -> None:
        """Bring a file to the disk."""
        file.flush()
        os.fsync(file.fileno())

    def size_bytes(self, name: str) -> int | None:
        """The size of a file."""
        at = self._path / name
        return at.stat().st_size if at.is_file() else None

    def rename(self, name: str, other: str) -> None:
        """Give a file another name."""
        (self._path / name).replace(self._path / other)

    def remove(self, name: str) -> None:
        """Remove a checkpoint; it is none any more from the first moment on."""
        at = self._path / name
        if not at.is_dir():
            at.unlink(missing_ok=True)
            return
        gone = at if at.name.startswith((DRAFT, GONE, OLD)) else self._path / f"{GONE}{at.name}"
        if gone != at:
            shutil.rmtree(gone, ignore_errors=True)
            at.rename(gone)
            _sync_folder(self._path)
        shutil.rmtree(gone)

    def draft(self, name: str) -> str:
        """Beside the checkpoints, under a name that none of them has."""
        return f"{DRAFT}{name}"

    def commit(self, name: str) -> None:
        """Bring the folder to the disk, and rename it; one of that name stays until then."""
        draft, old = self._path / self.draft(name), self._path / f"{OLD}{name}"
        _sync_folder(draft)
        if (self._path / name).is_dir():
            (self._path / name).rename(old)
        draft.rename(self._path / name)
        _sync_folder(self._path)
        self.remove(old.name)

    def drafts(self) -> list[str]:
        """What a process that was killed has left."""
        return [name for name in self.names() if name.startswith((DRAFT, GONE, OLD))]

    def restore(self) -> None:
        """Rename them back."""
        for old in (name for name in self.names() if name.startswith(OLD)):
            if not (self._path / old.removeprefix(OLD)).is_dir():
                (self._path / old).rename(self._path / old.removeprefix(OLD))
                _sync_folder(self._path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[bool]:
        """Hold a lock that ends with this process, and that its children do not inherit."""
        self.make("")
        with (self._path / _LOCK).open("ab") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                yield False
                return
            yield True


def _sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def folder_at(place: str | Path) -> Folder:
    """The folder at a path, or at a URL such as `s3://bucket/run`."""
    if isinstance(place, Path) or "://" not in place:
        return Disk(Path(place))
    from shardlang.runtime.checkpoint.remote import Remote

    return Remote(place)
