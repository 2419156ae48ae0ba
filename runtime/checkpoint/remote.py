"""A folder of checkpoints at a place that `fsspec` knows, such as a bucket."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator
from typing import IO

from fsspec.core import url_to_fs

from shardlang.runtime.errors import RunError


class Remote:
    """A folder by its URL. A file is there as a whole, once it is closed."""

    def __init__(self, url: str) -> None:
        """Find the file system.

        Raises:
            RunError: SH0663, there is none for such a URL.
        """
        try:
            self._files, self._root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise RunError(
                "SH0663",
                f"`{url}` cannot be reached: {error}",
                help="install the package of `fsspec` for it, or choose a folder",
            ) from error
        self._url = url

    def __str__(self) -> str:
        return self._url

    def _at(self, name: str) -> str:
        return posixpath.join(self._root, name) if name else str(self._root)

    def names(self, under: str = "") -> list[str]:
        """The names in it."""
        at = self._at(under)
        self._files.invalidate_cache()
        if not self._files.isdir(at):
            return []
        found = self._files.ls(at, detail=False)
        return sorted(posixpath.basename(str(path).rstrip("/")) for path in found)

    def make(self, name: str) -> None:
        """Make a folder within."""
        self._files.makedirs(self._at(name), exist_ok=True)

    def open(self, name: str, mode: str) -> IO[bytes]:
        """A file."""
        file: IO[bytes] = self._files.open(self._at(name), mode)
        return file

    def sync(self, file: IO[bytes]) -> None:
        """Nothing: closing the file is what the place counts."""

    def size_bytes(self, name: str) -> int | None:
        """The size of a file."""
        at = self._at(name)
        return int(self._files.size(at)) if self._files.isfile(at) else None

    def rename(self, name: str, other: str) -> None:
        """Give a file another name."""
        self._files.mv(self._at(name), self._at(other))

    def remove(self, name: str) -> None:
        """Remove a checkpoint, its manifest first."""
        from shardlang.runtime.checkpoint.manifest import MANIFEST

        manifest = self._at(posixpath.join(name, MANIFEST))
        if self._files.isfile(manifest):
            self._files.rm_file(manifest)
        if self._files.exists(self._at(name)):
            self._files.rm(self._at(name), recursive=True)

    def draft(self, name: str) -> str:
        """Its own place: without a manifest it is no checkpoint."""
        return name

    def commit(self, name: str) -> None:
        """Nothing: the manifest has been written."""

    def drafts(self) -> list[str]:
        """None that could be told from checkpoints without a manifest."""
        return []

    def restore(self) -> None:
        """There is nothing to bring back: what is replaced is removed first."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[bool]:
        """There is no lock: whoever else writes here cannot be seen."""
        yield True
