"""The parts of a shard along all dims, one for every member of a group.

What two layouts have in common is, along each dim, some of its indices; of the whole tensor, the
product of these: a box. `split` cuts the shard of one layout into the boxes that the members need,
`join` puts that of the other together from the boxes that they send.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Coord
from shardlang.ir.shards import freeze, shared

Where = slice | Tensor
"""Positions along one dim of a shard."""


class Boxes:
    """Where the members' boxes lie in one shard; together they are all of it."""

    def __init__(self, shape: tuple[int, ...], boxes: Sequence[tuple[Where, ...]]) -> None:
        self.shape = shape
        self.boxes = boxes
        self.shapes = [tuple(map(_length, box)) for box in boxes]

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """The box of every member; views where it is contiguous along each dim."""
        return [_taken(x, box) for box in self.boxes]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The shard that the members' boxes make."""
        out = parts[0].new_empty(self.shape)
        for box, part in zip(self.boxes, parts, strict=True):
            _put(out, box, part)
        return out


def boxes_of(
    own: Layout, at: Coord, other: Layout, coords: Sequence[Coord], device: torch.device
) -> Boxes:
    """What the shard of `own` at one coordinate shares with those of `other` at some."""
    boxes = [
        tuple(
            _where(mine, at, theirs, coord, device)
            for mine, theirs in zip(own.dims, other.dims, strict=True)
        )
        for coord in coords
    ]
    return Boxes(own.local_shape(at), boxes)


def _where(
    mine: DimLayout, at: Coord, theirs: DimLayout, coord: Coord, device: torch.device
) -> Where:
    """The positions along one dim, ascending by the indices that they stand for."""
    where = shared(mine, freeze(at), theirs, freeze(coord))
    return where if isinstance(where, slice) else torch.tensor(where, device=device)


def _length(where: Where) -> int:
    return where.stop - where.start if isinstance(where, slice) else where.numel()


def _taken(x: Tensor, box: tuple[Where, ...]) -> Tensor:
    for dim, where in enumerate(box):
        if isinstance(where, slice):
            x = x.narrow(dim, where.start, _length(where))
        else:
            x = x.index_select(dim, where)
    return x


def _put(out: Tensor, box: tuple[Where, ...], part: Tensor) -> None:
    """Write a box into its place."""
    if all(isinstance(where, slice) for where in box):
        _taken(out, box).copy_(part)
        return
    out[_crossed(box, out.device)] = part


def _crossed(box: tuple[Where, ...], device: torch.device) -> tuple[Tensor, ...]:
    """One index tensor per dim, shaped to cross the others."""
    found = []
    for dim, where in enumerate(box):
        if isinstance(where, slice):
            where = torch.arange(where.start, where.stop, device=device)
        found.append(where.view([-1 if i == dim else 1 for i in range(len(box))]))
    return tuple(found)
