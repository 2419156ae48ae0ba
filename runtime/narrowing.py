"""From this device's shard of a value to its part of it, where storage splits one dim further."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Coord
from shardlang.ir.shards import freeze, place


@dataclass(frozen=True, slots=True)
class Narrowing:
    """The dim that is split further, and the indices of the part along it."""

    dim: int
    at: slice | Tensor

    @staticmethod
    def of(wide: Layout, narrow: Layout, coord: Coord) -> Narrowing:
        """The part of one device; the layouts differ in one dim."""
        pairs = zip(wide.dims, narrow.dims, strict=True)
        changed = [i for i, (one, other) in enumerate(pairs) if one != other]
        assert len(changed) == 1, f"storage splits one dim: {wide} to {narrow}"
        (dim,) = changed
        at = place(narrow.dims[dim], wide.dims[dim], freeze(dict(coord)))
        return Narrowing(dim, at if isinstance(at, slice) else torch.tensor(at))

    @property
    def contiguous(self) -> bool:
        """Whether the part is one stretch of the dim."""
        return isinstance(self.at, slice)

    def __call__(self, value: Tensor) -> Tensor:
        """The part: a view where it is one stretch of the dim, else a copy."""
        if isinstance(self.at, slice):
            return value.narrow(self.dim, self.at.start, self.at.stop - self.at.start)
        return value.index_select(self.dim, self.at.to(value.device))
