"""Saving the whole model as safetensors under its own names, one tensor at a time."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from shardlang.runtime.errors import RunError
from shardlang.runtime.folder import Drafts, cannot_write, check_folder, safetensors_module
from shardlang.runtime.module import ShardedModule, held
from shardlang.runtime.transport import Wire
from shardlang.runtime.watch import named

LARGEST_FILE_BYTES = 5 * 2**30

Beside = Callable[[Path], object]
"""Writes what belongs beside the weights, such as a configuration, into a folder."""


def check_target(folder: Path, module: ShardedModule) -> None:
    """Raise SH0609 if the weights of a module cannot be written into a folder later."""
    shapes: dict[str, tuple[int, ...]] = {}
    need_bytes = 0
    for leaf, tensor in held(module).tensors():
        shapes.update(dict.fromkeys((leaf.name, *leaf.aliases), leaf.layout.shape))
        need_bytes += torch.Size(leaf.layout.shape).numel() * tensor.element_size()
    check_folder(folder, shapes, need_bytes)


def save(
    module: ShardedModule,
    folder: Path,
    file_bytes: int = LARGEST_FILE_BYTES,
    metadata: Mapping[str, str] | None = None,
    beside: Beside | None = None,
) -> list[Path]:
    """Write the model; rank 0 does, and holds at most one file's worth. Collective.

    A tied parameter is written once, under its first name, as `transformers` does. The folder's old
    weights stay until the new ones are complete. Returns the files, on rank 0.

    Raises:
        RunError: SH0609, safetensors is missing or the folder cannot be written; on rank 0 alone.
    """
    writer = _Writer(folder, file_bytes, metadata) if held(module).groups.rank == 0 else None
    for leaf, tensor in held(module).whole_tensors():
        if writer is not None:
            assert tensor is not None
            writer.add(leaf.name, tensor.cpu().contiguous())
    if writer is not None:
        writer.finish(beside)
    _everyone_waits(module, writer)
    return writer.files if writer is not None else []


def save_or_rescue(
    module: ShardedModule, folder: Path, metadata: Mapping[str, str], beside: Beside
) -> None:
    """Write the model, into a folder for temporary files if its own does not take it. Collective.

    Raises:
        RunError: SH0609, the folder cannot be written, with a note that says where the weights are
            instead, or that they are lost; on rank 0 alone.
    """
    failure: RunError | None = None
    try:
        save(module, folder, metadata=metadata, beside=beside)
    except RunError as error:
        failure = error
    if not _some_failed(module, failure is not None):
        return
    note = _rescued(module, metadata, beside)
    if failure is not None:
        notes = [f"what `{folder}` held is unchanged", note]
        raise RunError("SH0609", failure.message, help="make room there", notes=notes)


def _rescued(module: ShardedModule, metadata: Mapping[str, str], beside: Beside) -> str:
    """Write the model where there is room for temporary files; what to say of it. Collective."""
    folder = Path(tempfile.mkdtemp(prefix="shardlang-weights-"))
    try:
        save(module, folder, metadata=metadata, beside=beside)
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
    """Collects tensors into files of a bounded size.

    The first error is kept and ends the writing, since the other ranks still send their shards.
    """

    def __init__(self, folder: Path, file_bytes: int, metadata: Mapping[str, str] | None) -> None:
        self.error: RunError | None = None
        self.files: list[Path] = []
        self._metadata = {"format": "pt", **(metadata or {})}
        self._folder, self._file_bytes = folder, file_bytes
        self._held: dict[str, Tensor] = {}
        self._written: list[tuple[str, list[str]]] = []
        self._total = 0
        self._drafts: Drafts | None = None
        self._try(self._begin)

    def _begin(self) -> None:
        self._drafts = Drafts(self._folder)

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor, writing a file first if it would become too large."""
        size = tensor.numel() * tensor.element_size()
        if self._held and _bytes(self._held) + size > self._file_bytes:
            self._try(self._flush)
        if self.error is None:
            self._held[name] = tensor
            self._total += size

    def finish(self, beside: Beside | None) -> None:
        """Write what is left and give the files their final names."""
        self._try(self._flush)
        if beside is not None and self._drafts is not None:
            self._try(functools.partial(beside, self._drafts.path))
        self._try(self._commit)

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
        if self.error is not None and self._drafts is not None:
            self._held = {}
            self._drafts.discard()

    def _flush(self) -> None:
        assert self._drafts is not None
        name = f"draft-{len(self._written)}.safetensors"
        path = self._drafts.path / name
        safetensors_module().torch.save_file(self._held, path, metadata=self._metadata)
        self._written.append((name, list(self._held)))
        self._held = {}

    def _commit(self) -> None:
        assert self._drafts is not None
        self.files = self._drafts.commit(self._written, self._total)


def _bytes(held: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())
