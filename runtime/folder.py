"""A folder of weights that is always whole: files are written beside its own and then renamed.

At every moment of a save, readers find either the old model or the new one. Those that follow the
index first and those that look for `model.safetensors` first both do: what replaces the files that
a reader would take is one rename, and old files go only after it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from shardlang.runtime.errors import RunError

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DRAFTS = ".shardlang-saving"
"""The folder of the files that are not yet whole, inside the one that they are for."""

_SLACK_BYTES = 2**20
"""Room for the headers, the index and a configuration."""

Shapes = Mapping[str, tuple[int, ...]]


def check_folder(folder: Path, shapes: Shapes, need_bytes: int) -> None:
    """Make the folder, and raise SH0609 now if the weights cannot be written there later.

    Args:
        shapes: every name that a tensor of the model has, with its shape.
        need_bytes: the size of the weights; old ones stay until the new ones are complete.
    """
    safetensors_module()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".shardlang-probe"
        probe.write_bytes(b"0")
        probe.unlink()
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        raise cannot_write(folder, error) from error
    if free_bytes < need_bytes + _SLACK_BYTES:
        raise RunError(
            "SH0609",
            f"the weights take {need_bytes:,} bytes, and `{folder}` has room for {free_bytes:,}",
            help="make room, or choose a folder on another disk",
        )
    for path in sorted(folder.glob("*.safetensors")):
        _check_file(path, shapes)


def _check_file(path: Path, shapes: Shapes) -> None:
    """Raise SH0609 if a file holds anything but tensors of this model."""
    try:
        with safetensors_module().safe_open(path, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise _foreign(path, f"cannot be read: {error}") from error
    for name, shape in found.items():
        if name not in shapes:
            raise _foreign(path, f"holds another model's weights, such as `{name}`")
        if shapes[name] != shape:
            sizes = f"{list(shape)} instead of {list(shapes[name])}"
            raise _foreign(path, f"holds another model's weights: `{name}` is {sizes}")


def _foreign(path: Path, what: str) -> RunError:
    return RunError(
        "SH0609",
        f"`{path}` {what}",
        help="choose another folder, or remove the old weights yourself",
    )


class Drafts:
    """The files of one save, until `commit` gives them their places in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / DRAFTS
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()

    def discard(self) -> None:
        """Remove what has been written; the folder is as it was."""
        shutil.rmtree(self.path, ignore_errors=True)

    def commit(self, weights: Sequence[tuple[str, Sequence[str]]], total_bytes: int) -> list[Path]:
        """Give the files their names, and remove those that they replace.

        Args:
            weights: each drafted file of weights, with the names of its tensors.
        """
        old = set(self.folder.glob("*.safetensors"))
        drafted = {name for name, _ in weights}
        for path in sorted(self.path.iterdir()):
            if path.name not in drafted:
                _synced(path).replace(self.folder / path.name)
        committed = self._one(weights) if len(weights) == 1 else self._several(weights, total_bytes)
        for path in old - set(committed):
            path.unlink()
        self.discard()
        return committed

    def _one(self, weights: Sequence[tuple[str, Sequence[str]]]) -> list[Path]:
        committed = _synced(self.path / weights[0][0]).replace(self.folder / FILE)
        (self.folder / INDEX).unlink(missing_ok=True)
        return [committed]

    def _several(
        self, weights: Sequence[tuple[str, Sequence[str]]], total_bytes: int
    ) -> list[Path]:
        """Files under names that nobody reads yet, then the index that names them."""
        finals = _free_names(self.folder, len(weights))
        places: dict[str, str] = {}
        committed: list[Path] = []
        for (draft, tensors), final in zip(weights, finals, strict=True):
            committed.append(_synced(self.path / draft).replace(self.folder / final))
            places.update(dict.fromkeys(tensors, final))
        index = {"metadata": {"total_size": total_bytes}, "weight_map": places}
        draft_index = self.path / INDEX
        draft_index.write_text(json.dumps(index, indent=2))
        _synced(draft_index).replace(self.folder / INDEX)
        return committed


def _free_names(folder: Path, count: int) -> list[str]:
    """Names in the manner of `transformers` that no file of the folder has."""
    number = 0
    while True:
        stem = f"model-{number}" if number else "model"
        names = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        if not any((folder / name).exists() for name in names):
            return names
        number += 1


def _synced(path: Path) -> Path:
    """The file, once the disk has it."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return path


def safetensors_module() -> ModuleType:
    """The safetensors package. Raises SH0609 if it is not installed."""
    try:
        import safetensors.torch
    except ImportError:
        raise RunError(
            "SH0609",
            "saving needs the safetensors package",
            help="install it with `pip install shardlang[hf]`",
        ) from None
    module: ModuleType = safetensors
    return module


def cannot_write(path: Path, error: Exception) -> RunError:
    """The error for a folder that does not take a file."""
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    help = "make room there, or choose another folder" if full else "choose another folder"
    return RunError("SH0609", f"cannot write `{path}`: {reason}", help=help)
