"""The tensors of a model in a checkpoint, read whole and one at a time by one process."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from shardlang.runtime.checkpoint.drafting import VALUES, folder_of
from shardlang.runtime.checkpoint.files import Files, reader_of
from shardlang.runtime.checkpoint.finding import newest
from shardlang.runtime.checkpoint.folders import folder_at
from shardlang.runtime.checkpoint.manifest import Manifest
from shardlang.runtime.checkpoint.ranks import Ranks
from shardlang.runtime.checkpoint.values import decode
from shardlang.runtime.errors import RunError
from shardlang.runtime.weight_files import Kept

MODEL = "model"
"""The entry of a checkpoint that holds the model."""

CHECKPOINTS = "checkpoints"
"""The folder of the checkpoints in that of a run."""


@dataclass(frozen=True, slots=True)
class WholeModel:
    """A model in a checkpoint.

    Attributes:
        tensors: what it has, a tied tensor under its first name alone.
    """

    manifest: Manifest
    tensors: Sequence[Kept]
    _stored: Mapping[str, str]
    _small: Mapping[str, Tensor]
    _reader: FileSystemReader
    _metadata: Metadata

    def read(self, name: str) -> Tensor:
        """The values of a tensor."""
        if name in self._small:
            return self._small[name]
        stored = self._stored[name]
        described = self._metadata.state_dict_metadata[stored]
        assert isinstance(described, TensorStorageMetadata)
        made = torch.empty(described.size, dtype=described.properties.dtype)
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner({stored: made}, self._metadata, True)
        self._reader.read_data(planner.create_local_plan(), planner).wait()
        return made


def whole_model(checkpoint: Path) -> WholeModel:
    """The model of a checkpoint: of a step's folder, or the newest whole one of a run's.

    Raises:
        RunError: SH0661, there is none that is whole; SH0608, it holds no model.
    """
    at, step = _place(checkpoint)
    folder, ranks = folder_at(str(at)), Ranks()
    manifest, passed = newest(folder, ranks, step)
    if manifest is None:
        why = passed[0].why if passed else "there is none"
        raise RunError(
            "SH0661",
            f"`{checkpoint}` is no checkpoint that is whole: {why}",
            help="name the folder of a step, such as `run/checkpoints/step-000500`",
            notes=[str(one) for one in passed[1:]],
        )
    if MODEL not in manifest.entries:
        raise RunError(
            "SH0608",
            f"the checkpoint `{checkpoint}` holds no `{MODEL}`",
            help=f'save the module under that name: `save(step, {{"{MODEL}": module}})`',
        )
    name = folder_of(manifest.step)
    files = Files(folder, name)
    return _opened(manifest, files, reader_of(files, name))


def _place(checkpoint: Path) -> tuple[Path, int | None]:
    """The folder of the checkpoints, and the step if one is named."""
    if match := re.fullmatch(r"step-(\d+)", checkpoint.name):
        return checkpoint.parent, int(match[1])
    return (below if (below := checkpoint / CHECKPOINTS).is_dir() else checkpoint), None


def _opened(manifest: Manifest, files: Files, reader: FileSystemReader) -> WholeModel:
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, True)
    stored: dict[str, str] = {}

    def blank(path: str, name: str) -> Tensor:
        described = metadata.state_dict_metadata[name]
        assert isinstance(described, TensorStorageMetadata)
        stored[path] = name
        return torch.empty(described.size, dtype=described.properties.dtype, device="meta")

    tree = decode(json.loads(files.read(VALUES))[MODEL][0], "", blank)
    assert isinstance(tree, Mapping)
    found = {name: value for name, value in tree.items() if isinstance(value, Tensor)}
    firsts = {stored.get(name, name): name for name in reversed(found)}
    kept = [name for name in found if firsts[stored.get(name, name)] == name]
    return WholeModel(
        manifest,
        [Kept(name, tuple(found[name].shape), found[name].dtype) for name in kept],
        stored,
        {name: value for name, value in found.items() if name not in stored},
        reader,
        metadata,
    )
