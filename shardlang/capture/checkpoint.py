"""Reading a safetensors checkpoint one tensor at a time."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from shardlang.capture.deferred import Deferred, all_names, state
from shardlang.capture.errors import CaptureError, first_line
from shardlang.capture.hf_names import Conversion, model_names
from shardlang.capture.hf_types import Pretrained

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def checkpoint_tensors(
    folder: Path, deferred: Deferred, seed: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and persistent buffer with its value from the files in `folder`.

    A value is in the dtype of the file, and mapped from there: what is not read takes no memory.
    What the files lack keeps its initial value under `seed`, with a warning. A checkpoint whose
    tensors transformers cuts into several is loaded as a whole.

    Raises `CaptureError` SH0359 if a file cannot be read or a tensor has another shape.
    """
    files = tensor_files(folder)
    module = deferred.module
    keys = model_names(module, files)
    if keys is None:
        yield from _converted(folder, module)
        return
    stored = {name: _stored_name(names, module, keys) for name, names in _names(module).items()}
    missing = [name for name, key in stored.items() if key is None]
    if missing:
        listed = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        warnings.warn(f"the checkpoint lacks {len(missing)} tensors: {listed}", stacklevel=2)
    for name, tensor in state(module):
        key = stored[name]
        if key is None:
            yield name, deferred.value(tensor, seed)
        else:
            yield name, _fitting(_value(key, module, files), name, tensor)


def tensor_files(folder: Path) -> dict[str, Path]:
    """From the names of stored tensors to the files that hold them."""
    if (folder / INDEX).is_file():
        return _indexed(folder)
    safetensors = _import_safetensors()
    found: dict[str, Path] = {}
    one = [folder / FILE] if (folder / FILE).is_file() else []
    for path in one or sorted(folder.glob("*.safetensors")):
        try:
            with safetensors.safe_open(path, "pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except Exception as error:
            raise _unreadable(path, error) from None
    return found


def _indexed(folder: Path) -> dict[str, Path]:
    """The files of the tensors by the folder's index. Raises SH0359 if it cannot be read."""
    try:
        index = json.loads((folder / INDEX).read_text())["weight_map"]
        return {name: folder / file for name, file in index.items()}
    except Exception as error:
        raise _unreadable(folder / INDEX, error) from None


def check_files(folder: Path) -> None:
    """Raise SH0359 if the folder lacks a file that its index names."""
    files = _indexed(folder) if (folder / INDEX).is_file() else {}
    missing = sorted({path.name for path in files.values() if not path.is_file()})
    if missing:
        listed = ", ".join(f"`{name}`" for name in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CaptureError(
            "SH0359",
            f"the checkpoint `{folder.name}` lacks {listed}{more}, which its index names",
            help="copy the missing files, or name a whole checkpoint",
        )


def _value(key: str | Conversion, module: nn.Module, files: dict[str, Path]) -> torch.Tensor:
    """A stored tensor, or one that is computed from several."""
    if isinstance(key, str):
        return _read(files[key], key)
    assert isinstance(module, Pretrained)
    return key.value(module, lambda source: _read(files[source], source))


def _read(path: Path, key: str) -> torch.Tensor:
    """One stored tensor, mapped from its file."""
    safetensors = _import_safetensors()
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(key)
    except Exception as error:
        raise _unreadable(path, error) from None
    return tensor


def _fitting(tensor: torch.Tensor, name: str, like: torch.Tensor) -> torch.Tensor:
    """The tensor. Raises SH0359 if it has another shape than the model's."""
    if tensor.shape != like.shape:
        shapes = f"{list(like.shape)} in the model and {list(tensor.shape)} in the checkpoint"
        raise CaptureError(
            "SH0359",
            f"`{name}` is {shapes}",
            help="use the configuration that was saved with the checkpoint, or another checkpoint",
        )
    return tensor


def _unreadable(path: Path, error: Exception) -> CaptureError:
    """The error for a file that is not a checkpoint."""
    return CaptureError(
        "SH0359",
        f"`{path.name}` cannot be read: {first_line(error)}",
        help="copy the checkpoint again; its files must be whole, and of the safetensors format",
    )


def _names(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """From the first name of every stored tensor to all of its names."""
    groups = all_names(module)
    return {name: groups[name] for name, _ in state(module)}


def _stored_name(
    names: tuple[str, ...], module: nn.Module, keys: dict[str, str | Conversion]
) -> str | Conversion | None:
    """What a checkpoint holds of a tensor, with or without the base prefix."""
    base = getattr(module, "base_model_prefix", "")
    for name in names:
        for candidate in (name, f"{base}.{name}", name.removeprefix(f"{base}.")):
            if candidate in keys:
                return keys[candidate]
    return None


def _converted(folder: Path, module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the model as transformers itself loads it."""
    assert isinstance(module, Pretrained)
    model = module.from_pretrained(folder, config=module.config, dtype=module.config.dtype)
    yield from state(model)


def _import_safetensors() -> ModuleType:
    """The safetensors package. Raises SH0359 if it is not installed."""
    try:
        import safetensors
    except ImportError:
        raise CaptureError(
            "SH0359",
            "checkpoints need the safetensors package",
            help="install it with `pip install shardlang[hf]`",
        ) from None
    return safetensors
