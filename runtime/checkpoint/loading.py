"""Reading a checkpoint into a state, wherever its tensors lie now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from shardlang.runtime.checkpoint.drafting import VALUES, folder_of
from shardlang.runtime.checkpoint.entries import ANOTHER, Entry, OfModule
from shardlang.runtime.checkpoint.files import Files, reader_of
from shardlang.runtime.checkpoint.folders import Folder
from shardlang.runtime.checkpoint.manifest import Manifest
from shardlang.runtime.checkpoint.ranks import Ranks, reason, waiting
from shardlang.runtime.checkpoint.values import decode
from shardlang.runtime.errors import RunError
from shardlang.runtime.whole import held_shard


@dataclass(slots=True)
class _Targets:
    """Where the tensors of a checkpoint are read to.

    A tied tensor of the checkpoint may have several places; each place has one tensor.
    """

    metadata: Metadata
    places: dict[str, list[Tensor]] = field(default_factory=dict)
    _filled: dict[int, str] = field(default_factory=dict)

    def find(self, entry: Entry, path: str, name: str) -> Tensor:
        """The place of a tensor at a path in an entry's tree."""
        stored = self.metadata.state_dict_metadata[name]
        assert isinstance(stored, TensorStorageMetadata)
        made = entry.target(path, stored.size, stored.properties.dtype)
        held = held_shard(made)
        other = self._filled.setdefault(held.data_ptr(), name) if held.numel() else name
        if other != name:
            raise RunError(
                "SH0608",
                f"`{other}` and `{name}` are two tensors in the checkpoint, and one here",
                help=ANOTHER,
            )
        self.places.setdefault(name, []).append(made)
        return made

    @torch.no_grad()
    def read(self, reader: FileSystemReader, ranks: Ranks) -> None:
        """Read every tensor to its places. Collective."""
        call = partial(
            state_dict_loader.load,
            {name: found[0] for name, found in self.places.items()},
            storage_reader=reader,
            planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=ranks.group,
            no_dist=ranks.group is None,
        )
        waiting(call)
        for first, *others in self.places.values():
            for other in others:
                held_shard(other).copy_(held_shard(first))


def load(folder: Folder, manifest: Manifest, entries: Mapping[str, Entry], ranks: Ranks) -> None:
    """Read a checkpoint. Collective. No rank holds more than what is its own, and one box.

    Raises:
        RunError: SH0608, it does not fit; SH0661, it cannot be read.
    """
    name = folder_of(manifest.step)
    files = Files(folder, name)
    reader = reader_of(files, name)
    targets = _Targets(reader.read_metadata())
    trees: dict[str, Mapping[str, object]] = {}
    ranks.each(lambda: trees.update(_trees(manifest, files, entries, targets, ranks)))
    try:
        targets.read(reader, ranks)
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise RunError(
            "SH0661",
            f"the checkpoint of step {manifest.step} cannot be read: {reason(cause)}",
            help="look at the folder and its rights, or load another step",
        ) from error
    for entry, tree in trees.items():
        entries[entry].load(tree)


def _trees(
    manifest: Manifest,
    files: Files,
    entries: Mapping[str, Entry],
    targets: _Targets,
    ranks: Ranks,
) -> dict[str, Mapping[str, object]]:
    """The tree of every entry, whose tensors are places that are still to be filled."""
    missing = [name for name in entries if name not in manifest.entries]
    if missing:
        raise RunError(
            "SH0608",
            f"the checkpoint of step {manifest.step} holds no `{missing[0]}`",
            help=f"ask for what it holds: {', '.join(manifest.entries)}",
        )
    values = json.loads(files.read(VALUES))
    found: dict[str, Mapping[str, object]] = {}
    for name, entry in entries.items():
        said = values[name][ranks.rank if len(values[name]) == ranks.size else 0]
        if isinstance(entry, OfModule):
            entry.check(said)
        found[name] = _tree(said, entry, targets)
    return found


def _tree(said: object, entry: Entry, targets: _Targets) -> Mapping[str, object]:
    found = decode(said, "", lambda path, name: targets.find(entry, path, name))
    assert isinstance(found, Mapping)
    return found
