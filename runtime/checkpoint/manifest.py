"""The manifest of a checkpoint: readable text, written last, that says what belongs to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO

MANIFEST = "manifest.json"
SCHEMA = 1

_CHECKSUM = "checksum"
_BLOCK_BYTES = 1 << 20


class Damaged(Exception):
    """Why a folder holds no checkpoint that can be taken, in words."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a checkpoint."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is.

    Attributes:
        step: the steps that were taken before it.
        world: the number of processes that wrote it.
        entries: what it holds: the model, the optimizer and so on.
        about: the spec, the program's fingerprint, the mesh, and what else the run says of itself.
        versions: of the libraries that wrote it.
        tensors: type, shape and layout of every tensor.
        files: every file but the manifest.
    """

    step: int
    world: int
    entries: Sequence[str]
    about: Mapping[str, object]
    versions: Mapping[str, str]
    tensors: Mapping[str, str]
    files: Sequence[File]

    def text(self) -> str:
        """The text, whose last line is its own checksum."""
        document = {"schema": SCHEMA, **asdict(self)}
        return json.dumps({**document, _CHECKSUM: _checksum(document)}, indent=1) + "\n"

    @staticmethod
    def parse(text: str) -> Manifest:
        """The manifest of a text.

        Raises:
            Damaged: it is no manifest, or another than was written.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise Damaged(f"`{MANIFEST}` is cut off or is no JSON: {error}") from error
        checksum = document.pop(_CHECKSUM, None) if isinstance(document, dict) else None
        if checksum is None:
            raise Damaged(f"`{MANIFEST}` is no manifest: it has no checksum")
        if checksum != _checksum(document):
            raise Damaged(f"`{MANIFEST}` has changed: its checksum differs")
        if document.pop("schema") != SCHEMA:
            raise Damaged(f"`{MANIFEST}` was written by another version of shardlang")
        return Manifest(**{**document, "files": [File(**file) for file in document["files"]]})


def _checksum(document: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def sha256_of(file: IO[bytes]) -> str:
    """The checksum of a file, read block by block."""
    found = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        found.update(block)
    return found.hexdigest()
