"""Safetensors files that are written one tensor at a time.

A file begins with the places of all its tensors, so their names, types and shapes are known first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from shardlang.runtime.errors import RunError

LARGEST_FILE_BYTES = 5 * 2**30

StoredAs = Callable[[str, Tensor], Mapping[str, Tensor]]
"""From a tensor of the model to those that a checkpoint of its kind holds, by their names."""

_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
}  # fmt: skip
"""What the format calls its types."""

_ALIGNED_BYTES = 8


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor as it will stand in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """How much room its values take."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def as_it_is(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    """Every tensor under its own name."""
    return {name: tensor}


def planned(tensors: Iterable[Kept], stored_as: StoredAs) -> list[Kept]:
    """What will be written of some tensors, in their order."""
    blank = ((x.name, torch.empty(x.shape, dtype=x.dtype, device="meta")) for x in tensors)
    return [
        Kept(name, tuple(made.shape), made.dtype)
        for given in blank
        for name, made in stored_as(*given).items()
    ]


def in_files(kept: Iterable[Kept], file_bytes: int) -> list[list[Kept]]:
    """The tensors of each file, in their order; no file is larger, unless for one tensor."""
    found: list[list[Kept]] = [[]]
    size_bytes = 0
    for one in kept:
        size_bytes += one.size_bytes
        if found[-1] and size_bytes > file_bytes:
            found.append([])
            size_bytes = one.size_bytes
        found[-1].append(one)
    return found


class WeightFiles:
    """The files of one model in a folder.

    Attributes:
        written: each file's name, with the names of its tensors.
    """

    def __init__(
        self, folder: Path, kept: Sequence[Kept], file_bytes: int, metadata: Mapping[str, str]
    ) -> None:
        """Raises RunError SH0609 for a type that the format does not have."""
        for one in kept:
            if one.dtype not in _TYPES:
                raise RunError(
                    "SH0609",
                    f"`{one.name}` is {one.dtype}, which safetensors files do not hold",
                    help="save it with `program.checkpoints(folder)`",
                )
        files = in_files(kept, file_bytes)
        self.written = [
            (f"draft-{i}.safetensors", [x.name for x in file]) for i, file in enumerate(files)
        ]
        self._folder, self._metadata = folder, {"format": "pt", **metadata}
        self._next = self._places(files)

    def _places(self, files: Sequence[Sequence[Kept]]) -> Iterator[tuple[IO[bytes], Kept]]:
        """Every tensor with the file that stands where it begins."""
        for (name, _), kept in zip(self.written, files, strict=True):
            with (self._folder / name).open("wb") as file:
                file.write(_header(kept, self._metadata))
                for one in kept:
                    yield file, one

    def add(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor."""
        file, kept = next(self._next)
        assert kept == Kept(name, tuple(tensor.shape), tensor.dtype), f"{kept} and not {name}"
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        file.write(plain.numpy().data)

    def close(self) -> None:
        """Close the last file; all tensors are written."""
        left = next(self._next, None)
        assert left is None, f"{left} is not written"


def _header(kept: Iterable[Kept], metadata: Mapping[str, str]) -> bytes:
    """What stands before the values: the length of a JSON text, and that text."""
    found: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for one in kept:
        end = at + one.size_bytes
        found[one.name] = {
            "dtype": _TYPES[one.dtype], "shape": list(one.shape), "data_offsets": [at, end],
        }  # fmt: skip
        at = end
    text = json.dumps(found, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED_BYTES)
    return len(text).to_bytes(8, "little") + text
