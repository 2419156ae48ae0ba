"""Which checkpoints of a folder are whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from shardlang.runtime.checkpoint.drafting import folder_of, read_manifest
from shardlang.runtime.checkpoint.folders import Folder
from shardlang.runtime.checkpoint.manifest import MANIFEST, Damaged, File, Manifest, sha256_of
from shardlang.runtime.checkpoint.ranks import Ranks, reason

_STEP = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A checkpoint that is not whole, and why."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"`{self.name}` is passed over: {self.why}"


def steps_in(folder: Folder) -> list[int]:
    """The steps of all checkpoints, whole or not, in their order."""
    found = (_STEP.fullmatch(name) for name in folder.names())
    return sorted(int(match[1]) for match in found if match)


def newest(
    folder: Folder, ranks: Ranks, step: int | None = None
) -> tuple[Manifest | None, list[PassedOver]]:
    """The newest checkpoint that is whole to the last byte, or that of a step. Collective.

    The ranks share the reading of its files. Those that are newer and not whole are listed.
    """
    steps = ranks.first(lambda: steps_in(folder)) if step is None else [step]
    passed: list[PassedOver] = []
    for number in reversed(steps):
        manifest, why = ranks.first(partial(_manifest, folder, number))
        if manifest is not None:
            why = _damage(folder, manifest.files[ranks.rank :: ranks.size], folder_of(number))
            why = next(filter(None, ranks.gather(why)), "")
        if manifest is not None and not why:
            return manifest, passed
        passed.append(PassedOver(folder_of(number), why))
    return None, passed


def _manifest(folder: Folder, step: int) -> tuple[Manifest | None, str]:
    try:
        found = read_manifest(folder, folder_of(step))
    except Damaged as error:
        return None, str(error)
    if found.step != step:
        return None, f"its manifest is of step {found.step}: it was renamed"
    return found, ""


def _damage(folder: Folder, files: Sequence[File], name: str) -> str:
    """What is wrong with some files, in words; empty if nothing is."""
    for file in files:
        try:
            with folder.open(f"{name}/{file.name}", "rb") as stream:
                found = sha256_of(stream)
        except OSError as error:
            return f"`{file.name}` cannot be read: {reason(error)}"
        if found != file.sha256:
            return f"`{file.name}` has changed: its checksum differs"
    return ""


def committed(folder: Folder) -> list[int]:
    """The steps of the checkpoints that were written to the end, in their order."""
    return [
        step
        for step in steps_in(folder)
        if folder.size_bytes(f"{folder_of(step)}/{MANIFEST}") is not None
    ]


def remove_leftovers(folder: Folder) -> list[str]:
    """Remove what killed processes have left, unless another one writes; the names."""
    if not folder.drafts():
        return []
    with folder.writing() as alone:
        if alone:
            folder.restore()
        found = folder.drafts() if alone else []
        for name in found:
            folder.remove(name)
    return found
