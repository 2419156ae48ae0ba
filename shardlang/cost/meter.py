"""Counting the bytes of tensors that are alive while some code runs.

Every tensor that an op gives is seen as it comes out of the dispatcher, and its storage is counted
until it is freed. What a kernel allocates for itself, and what an allocator adds, is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import Tensor
from torch.distributed.tensor import DTensor

from shardlang.ir.compat import OpOverload, TorchDispatchMode, storage_key, tree_leaves


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that are alive, now and at most, each storage once.

    Storages are numbered in the order in which they are first seen.

    Attributes:
        live: bytes that are alive.
        peak: the most bytes that were alive at any time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._seen = 0
        self._alive: dict[int, tuple[int, int]] = {}

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of some tensors from now on; of a DTensor, that of its shard.

        Tensors of the device `meta` have none.
        """
        for tensor in tensors:
            self._count(tensor._local_tensor if isinstance(tensor, DTensor) else tensor)

    def number(self, tensor: Tensor) -> int:
        """The number of a storage that is counted. Raises KeyError."""
        return self._alive[storage_key(tensor)][0]

    def alive(self) -> list[tuple[int, int]]:
        """Number and bytes of every storage that is alive, in the order of their numbers."""
        return sorted(self._alive.values())

    def _count(self, tensor: Tensor) -> None:
        key = storage_key(tensor)
        if tensor.device.type == "meta" or key in self._alive:
            return
        storage = tensor.untyped_storage()
        self._alive[key] = self._seen, storage.nbytes()
        self._seen += 1
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.live -= self._alive.pop(key)[1]

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run an op and count what it gives."""
        made: object = func(*args, **(kwargs or {}))
        self.count(one for one in tree_leaves(made) if isinstance(one, Tensor))
        return made
