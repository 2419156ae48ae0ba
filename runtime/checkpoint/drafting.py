"""Writing one checkpoint: its files, then the manifest, then its name."""

from __future__ import annotations

import hashlib
import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from shardlang.runtime.checkpoint.files import Files, writer_to
from shardlang.runtime.checkpoint.folders import Folder
from shardlang.runtime.checkpoint.manifest import MANIFEST, Damaged, File, Manifest
from shardlang.runtime.checkpoint.ranks import Ranks, reason
from shardlang.runtime.checkpoint.staging import Boxes, BoxPlanner
from shardlang.runtime.errors import RunError

VALUES = "values.json"
"""The file of the plain values."""

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # said of every single process


@dataclass(frozen=True, slots=True)
class Draft:
    """All that a checkpoint will hold, copied.

    Attributes:
        trees: the plain values of this rank, by entry, as JSON.
        described: type, shape and layout of every tensor.
        about: what the run says of itself.
    """

    step: int
    trees: Mapping[str, str]
    tensors: Mapping[str, Boxes]
    described: Mapping[str, str]
    about: Mapping[str, object]


def folder_of(step: int) -> str:
    """The name of a checkpoint."""
    return f"step-{step:06d}"


def write(draft: Draft, folder: Folder, ranks: Ranks) -> None:
    """Write and commit a checkpoint. Collective.

    Raises:
        RunError: SH0662, it cannot be written; what was written of it is removed.
    """
    name = folder_of(draft.step)
    at = folder.draft(name)
    try:
        ranks.first(lambda: _begin(folder, at))
        _write_tensors(draft, folder, ranks, at)
    except RunError as error:
        _give_up(folder, ranks, at)
        raise cannot_write(folder, error.message, draft.step) from error


def cannot_write(folder: Folder, why: str, step: int | None = None) -> RunError:
    """The error for a folder that does not take a checkpoint."""
    which = "a checkpoint" if step is None else f"the checkpoint of step {step}"
    return RunError(
        "SH0662",
        f"{which} cannot be written to `{folder}`: {why}",
        help="make room there or choose another folder; the checkpoints before it are as they were",
    )


def _begin(folder: Folder, at: str) -> None:
    folder.remove(at)
    folder.make(at)


def _give_up(folder: Folder, ranks: Ranks, at: str) -> None:
    """Give back the room of a draft."""
    if ranks.rank == 0:
        try:
            folder.remove(at)
        except OSError:
            return


def _write_tensors(draft: Draft, folder: Folder, ranks: Ranks, at: str) -> None:
    files = Files(folder, at)
    try:
        save(
            dict(draft.tensors),
            storage_writer=writer_to(files, at),
            planner=BoxPlanner(),
            process_group=ranks.group,
            no_dist=ranks.group is None,
        )
    except CheckpointException as error:
        rank, (cause, _) = next(iter(sorted(error.failures.items())))
        where = f"rank {rank}: " if ranks.size > 1 else ""
        raise RunError("SH0662", f"{where}{reason(cause)}") from error
    trees = _of_all_ranks(draft.trees, ranks)
    written = ranks.gather(dict(files.written))
    ranks.first(lambda: _commit(draft, folder, files, trees, written))


def _of_all_ranks(trees: Mapping[str, str], ranks: Ranks) -> dict[str, Sequence[str]]:
    """The values by entry: one for all ranks, or those of each rank where they differ."""
    digests = {name: hashlib.sha256(tree.encode()).hexdigest() for name, tree in trees.items()}
    said = ranks.gather(digests)
    differ = [name for name in trees if any(one.get(name) != digests[name] for one in said)]
    each = ranks.gather({name: trees[name] for name in differ})
    return {
        name: [one[name] for one in each] if name in differ else [tree]
        for name, tree in trees.items()
    }


def _commit(
    draft: Draft,
    folder: Folder,
    files: Files,
    trees: Mapping[str, Sequence[str]],
    written: Sequence[Mapping[str, File]],
) -> None:
    """Write what rank 0 alone writes, and let the draft be a checkpoint."""
    values = {name: [json.loads(tree) for tree in found] for name, found in trees.items()}
    files.write(VALUES, json.dumps(values, indent=1))
    all_files = {name: file for one in written for name, file in one.items()} | files.written
    at = folder.draft(folder_of(draft.step))
    for file in all_files.values():
        _check_there(folder, at, file)
    manifest = Manifest(
        draft.step, len(written), list(trees), draft.about, versions(), draft.described,
        sorted(all_files.values(), key=lambda file: file.name),
    )  # fmt: skip
    files.write(MANIFEST, manifest.text())
    folder.commit(folder_of(draft.step))


def _check_there(folder: Folder, at: str, file: File) -> None:
    """Every file must be seen by rank 0: processes of other nodes may have folders of their own."""
    found = folder.size_bytes(f"{at}/{file.name}")
    if found != file.size_bytes:
        seen = (
            "is not there" if found is None else f"has {found} bytes instead of {file.size_bytes}"
        )
        raise RunError(
            "SH0662",
            f"`{file.name}`, which a rank has written, {seen}: do all nodes share the folder?",
        )


def versions() -> dict[str, str]:
    """Of what a checkpoint depends on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("shardlang")
    except PackageNotFoundError:
        own = "unknown"
    return {"shardlang": own, "torch": torch.__version__, "python": platform.python_version()}


def read_manifest(folder: Folder, name: str) -> Manifest:
    """The manifest of a checkpoint, all of whose files are there and have their sizes.

    Raises:
        Damaged: it is not whole.
    """
    if folder.size_bytes(f"{name}/{MANIFEST}") is None:
        raise Damaged("it has no manifest: it was not written to the end")
    try:
        manifest = Manifest.parse(Files(folder, name).read(MANIFEST))
    except (OSError, UnicodeDecodeError, TypeError) as error:
        raise Damaged(f"`{MANIFEST}` cannot be read: {reason(error)}") from error
    for file in manifest.files:
        found = folder.size_bytes(f"{name}/{file.name}")
        if found is None:
            raise Damaged(f"`{file.name}` is missing")
        if found != file.size_bytes:
            raise Damaged(f"`{file.name}` has {found} of {file.size_bytes} bytes")
    return manifest
