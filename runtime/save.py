"""Saving the whole model as safetensors under its own names, one tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from shardlang.runtime.errors import RunError
from shardlang.runtime.module import ShardedModule, held

LARGEST_FILE_BYTES = 5 * 2**30
FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def save(module: ShardedModule, folder: Path, file_bytes: int = LARGEST_FILE_BYTES) -> list[Path]:
    """Write the model; rank 0 does, and holds at most one file's worth. Collective.

    A tied parameter is written once, under its first name, as `transformers` does. Returns the
    files, on rank 0.

    Raises:
        RunError: SH0609, safetensors is missing or the folder cannot be written.
    """
    writer = _Writer(folder, file_bytes) if held(module).groups.rank == 0 else None
    for leaf, tensor in held(module).whole_tensors():
        if writer is not None:
            assert tensor is not None
            writer.add(leaf.name, tensor.cpu().contiguous())
    return writer.close() if writer is not None else []


def check_folder(folder: Path) -> None:
    """Make the folder, and raise SH0609 now if nothing can be written there later."""
    _save_file()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _cannot_write(folder, error) from error


class _Writer:
    """Collects tensors into files of a bounded size."""

    def __init__(self, folder: Path, file_bytes: int) -> None:
        self._save = _save_file()
        self._folder, self._file_bytes = folder, file_bytes
        self._held: dict[str, Tensor] = {}
        self._drafts: list[tuple[Path, list[str]]] = []
        self._total = 0
        check_folder(folder)

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor, writing a file first if it would become too large."""
        size = tensor.numel() * tensor.element_size()
        if self._held and _bytes(self._held) + size > self._file_bytes:
            self._flush()
        self._held[name] = tensor
        self._total += size

    def _flush(self) -> None:
        path = self._folder / f"draft-{len(self._drafts)}.safetensors"
        try:
            self._save(self._held, path, metadata={"format": "pt"})
        except OSError as error:
            raise _cannot_write(path, error) from error
        self._drafts.append((path, list(self._held)))
        self._held = {}

    def close(self) -> list[Path]:
        """Write what is left and give the files their final names."""
        self._flush()
        count = len(self._drafts)
        if count == 1:
            return [self._drafts[0][0].replace(self._folder / FILE)]
        places: dict[str, str] = {}
        paths = []
        for number, (draft, names) in enumerate(self._drafts, 1):
            name = f"model-{number:05d}-of-{count:05d}.safetensors"
            paths.append(draft.replace(self._folder / name))
            places.update(dict.fromkeys(names, name))
        index = {"metadata": {"total_size": self._total}, "weight_map": places}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2))
        return paths


def _bytes(held: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def _save_file() -> Any:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise RunError(
            "SH0609",
            "saving needs the safetensors package",
            help="install it with `pip install shardlang[hf]`",
        ) from None
    return save_file


def _cannot_write(path: Path, error: OSError) -> RunError:
    reason = (error.strerror or str(error)).lower()
    return RunError("SH0609", f"cannot write `{path}`: {reason}", help="choose another folder")
