"""Saving the whole model as safetensors, one tensor at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from shardlang.runtime.errors import RunError
from shardlang.runtime.folder import Drafts, cannot_write, check_folder, safetensors_module
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.transport import Wire
from shardlang.runtime.watch import named
from shardlang.runtime.weight_files import (
    LARGEST_FILE_BYTES,
    Kept,
    StoredAs,
    WeightFiles,
    as_it_is,
    planned,
)

Beside = Callable[[Path], object]
"""Writes what belongs beside the weights into a folder, or looks at one."""


def _nothing(folder: Path) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Format:
    """How a model is written.

    Attributes:
        stored_as: the names of its tensors in the files, and how they are cut.
        beside: writes what belongs beside the weights.
        check: raises SH0609 for a folder that belongs to another model.
        metadata: what every file says of itself.
        file_bytes: the largest file.
    """

    stored_as: StoredAs = as_it_is
    beside: Beside = _nothing
    check: Beside = _nothing
    metadata: Mapping[str, str] = field(default_factory=dict)
    file_bytes: int = LARGEST_FILE_BYTES


PLAIN = Format()
"""The tensors alone, by their own names."""


def check_target(folder: Path, module: ShardedModule, format: Format = PLAIN) -> None:
    """Raise SH0609 if the weights of a module cannot be written into a folder later."""
    aliases = [
        Kept(name, leaf.layout.shape, tensor.dtype)
        for leaf, tensor in held(module).tensors()
        for name in leaf.aliases
    ]
    check_room(folder, _kept(module), format, aliases)


def check_room(
    folder: Path, tensors: Iterable[Kept], format: Format, aliases: Iterable[Kept] = ()
) -> None:
    """Raise SH0609 if tensors of a model cannot be written into a folder later.

    `aliases` are other names of them, under which the folder's old weights may hold them.
    """
    kept = planned(tensors, format.stored_as)
    format.check(folder)
    shapes = {one.name: one.shape for one in (*planned(aliases, format.stored_as), *kept)}
    check_folder(folder, shapes, sum(one.size_bytes for one in kept))


def _kept(module: ShardedModule) -> list[Kept]:
    return [Kept(x.name, x.layout.shape, tensor.dtype) for x, tensor in held(module).tensors()]


def save(module: ShardedModule, folder: Path, format: Format = PLAIN) -> list[Path]:
    """Write the model; rank 0 does, and holds one whole tensor at a time. Collective.

    A tied parameter is written once, under its first name, as `transformers` does. The folder's old
    weights stay until the new ones are complete. Returns the files, on rank 0.

    Raises:
        RunError: SH0609, safetensors is missing or the folder cannot be written; on rank 0 alone.
    """
    first = held(module).groups.rank == 0
    writer = _Writer(folder, _kept(module), format) if first else None
    for leaf, tensor in held(module).whole_tensors():
        if writer is not None:
            assert tensor is not None
            writer.add(leaf.name, tensor)
    if writer is not None:
        writer.finish()
    _everyone_waits(module, writer)
    return writer.files if writer is not None else []


def write(
    tensors: Sequence[Kept], read: Callable[[str], Tensor], folder: Path, format: Format
) -> list[Path]:
    """Write tensors that are read one at a time, by one process; the files.

    Raises:
        RunError: SH0609, safetensors is missing or the folder cannot be written.
    """
    writer = _Writer(folder, tensors, format)
    try:
        for one in tensors:
            writer.add(one.name, read(one.name))
    except BaseException:
        writer.discard()
        raise
    writer.finish()
    if writer.error is not None:
        raise writer.error
    return writer.files


def save_or_rescue(module: ShardedModule, folder: Path, format: Format) -> None:
    """Write the model, into a folder for temporary files if its own does not take it. Collective.

    Raises:
        RunError: SH0609, the folder cannot be written, with a note that says where the weights are
            instead, or that they are lost; on rank 0 alone.
    """
    failure: RunError | None = None
    try:
        save(module, folder, format)
    except RunError as error:
        failure = error
    if not _some_failed(module, failure is not None):
        return
    note = _rescued(module, format)
    if failure is not None:
        notes = [f"what `{folder}` held is unchanged", note]
        raise RunError("SH0609", failure.message, help="make room there", notes=notes)


def _rescued(module: ShardedModule, format: Format) -> str:
    """Write the model where there is room for temporary files; what to say of it. Collective."""
    folder = Path(tempfile.mkdtemp(prefix="shardlang-weights-"))
    try:
        save(module, folder, format)
    except RunError as error:
        return f"the weights are lost, since there is no other place: {error.message}"
    return f"the weights are in `{folder}` instead: move them from there"


def _everyone_waits(module: ShardedModule, writer: _Writer | None) -> None:
    """Wait until rank 0 has written, and raise there what went wrong."""
    _some_failed(module, False)
    if writer is not None and writer.error is not None:
        raise writer.error


def _some_failed(module: ShardedModule, failed: bool) -> bool:
    """Whether any rank has failed. Collective."""
    groups = held(module).groups
    mine = torch.tensor(int(failed), device=groups.device)
    transport = Wire(groups.everyone())
    return bool(named("agreement on the save", transport.all_reduce, mine, "max").item())


class _Writer:
    """Writes tensors into the drafts of a folder, and gives them their places at the end.

    The first error is kept and ends the writing, since the other ranks still send their shards.
    """

    def __init__(self, folder: Path, tensors: Iterable[Kept], format: Format) -> None:
        self.error: RunError | None = None
        self.files: list[Path] = []
        self._folder, self._format = folder, format
        self._drafts: Drafts | None = None
        self._weights: WeightFiles | None = None
        self._try(lambda: self._begin(tensors))

    def _begin(self, tensors: Iterable[Kept]) -> None:
        safetensors_module()
        self._format.check(self._folder)
        kept = planned(tensors, self._format.stored_as)
        self._total = sum(one.size_bytes for one in kept)
        self._drafts = Drafts(self._folder)
        self._weights = WeightFiles(
            self._drafts.path, kept, self._format.file_bytes, self._format.metadata
        )

    def add(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor."""
        self._try(lambda: self._add(name, tensor))

    def _add(self, name: str, tensor: Tensor) -> None:
        assert self._weights is not None
        for stored, part in self._format.stored_as(name, tensor).items():
            self._weights.add(stored, part)

    def finish(self) -> None:
        """Write what belongs beside the weights, and give the files their final names."""
        self._try(self._commit)

    def _commit(self) -> None:
        assert self._drafts is not None and self._weights is not None
        self._weights.close()
        self._format.beside(self._drafts.path)
        self.files = self._drafts.commit(self._weights.written, self._total)

    def discard(self) -> None:
        """Leave the folder as it was."""
        if self._drafts is not None:
            self._drafts.discard()

    def _try(self, step: Callable[[], object]) -> None:
        """Take a step, unless an earlier one has failed."""
        if self.error is not None:
            return
        try:
            step()
        except RunError as error:
            self.error = error
        except Exception as error:
            self.error = cannot_write(self._folder, error)
        if self.error is not None:
            self.discard()
