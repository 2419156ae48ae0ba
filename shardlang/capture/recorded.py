"""One call on the tape of a constructor, and where its tensors lay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from shardlang.ir.arguments import Args, Kwargs
from shardlang.ir.compat import OpOverload, storage_key


class CannotReplayError(Exception):
    """A tensor's value does not follow from the operators on the tape."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fake tensor lay when it was recorded; holding the storage keeps its key unique."""

    storage: torch.UntypedStorage
    key: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Place:
        """The present place of a tensor."""
        storage, size = tensor.untyped_storage(), tuple(tensor.size())
        offset = int(tensor.storage_offset())
        return cls(storage, storage_key(tensor), size, tensor.stride(), offset, tensor.dtype)

    def memory(self) -> torch.UntypedStorage:
        """Real memory as large as the storage, of any content."""
        return torch.empty(self.storage.nbytes(), dtype=torch.uint8).untyped_storage()

    def over(self, storage: torch.UntypedStorage) -> torch.Tensor:
        """A real tensor at this place in `storage`."""
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


@dataclass(frozen=True, slots=True)
class Entry:
    """One operator call that created or wrote the storages `writes`."""

    func: OpOverload
    args: Args
    kwargs: Kwargs
    outs: object
    writes: tuple[int, ...]
    reads: tuple[int, ...]
    versions: tuple[tuple[torch.Tensor, int], ...]
    overwrites: bool
    default: torch.dtype
    """The type of factories that name none: a constructor may set another one while it runs."""


@contextlib.contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Let factories that name no type make tensors of this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def laid_out(real: torch.Tensor, place: Place) -> torch.UntypedStorage:
    """The storage of a freshly made tensor, laid out as its fake was."""
    if real.stride() == place.stride and real.storage_offset() == place.offset:
        return real.untyped_storage()
    if place.offset != 0:
        raise CannotReplayError
    laid = torch.empty_strided(place.size, place.stride, dtype=real.dtype)
    return laid.copy_(real).untyped_storage()
