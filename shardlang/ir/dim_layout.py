"""How one dim of a tensor lies on the mesh.

A dim is a row of *blocks*, each a mixed-radix number of *factors*, major to minor; every factor
may be split over a product of mesh axes. A plain dim is one block of one factor. `tp(3)` is one
block `(3)(n/3 @tp)`; unequal packed blocks are several blocks; a flattened `batch x seq` dim whose
digits are both sharded is `(8@dp)(128@tp)`. So a reshape only regroups factors, and uneven heads
are `(5@tp)(64)`: the split falls between heads, not inside one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shardlang.ir.factor import Block, Factor, axes_of, block_size, blocks_text, canonical
from shardlang.ir.mesh import Axis, Coord


@dataclass(frozen=True, slots=True)
class RowOrder:
    """The order of rows that a route has sent to the devices that hold their groups.

    Attributes:
        by: the name of the value that says which group each row has.
        groups: how the groups lie.
    """

    by: str
    groups: DimLayout

    def __str__(self) -> str:
        return f"by {self.by} of {self.groups}"


@dataclass(frozen=True, slots=True)
class DimLayout:
    """How one dim lies on the mesh; always canonical, so equal layouts compare equal.

    Attributes:
        order: for rows that a route has sent out, their order; the shards are then of the sizes
            that the groups make, and no reshard but the way back changes how the dim lies.
    """

    blocks: tuple[Block, ...]
    order: RowOrder | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", canonical(self.blocks))

    @staticmethod
    def whole(size: int) -> DimLayout:
        """The dim on every device in full."""
        return DimLayout(((Factor(size),),))

    @staticmethod
    def shard(
        size: int, axes: tuple[Axis, ...], blocks: int | tuple[int, ...] = 1, unit: int = 1
    ) -> DimLayout:
        """The dim split over `axes`.

        `blocks` packs the dim: a count of equal blocks, or their ratios, each split by itself.
        `unit` indices always stay together.

        Raises:
            ValueError: the blocks or units do not divide the size.
        """
        ratios = (1,) * blocks if isinstance(blocks, int) else blocks
        total = sum(ratios)
        if total <= 0 or size % total or any(size // total * r % unit for r in ratios):
            raise ValueError(f"a dim of {size} is not made of blocks {ratios} in units of {unit}")
        each = size // total
        return DimLayout(tuple((Factor(each * r // unit, axes), Factor(unit)) for r in ratios))

    @property
    def size(self) -> int:
        """The global size."""
        return sum(block_size(block) for block in self.blocks)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes that split the dim, major to minor."""
        return axes_of(self.blocks)

    @property
    def plain(self) -> bool:
        """Whether the dim is one factor: contiguous shards."""
        return len(self.blocks) == 1 and len(self.blocks[0]) == 1

    @property
    def even(self) -> bool:
        """Whether every device holds the same number of indices."""
        return all(factor.even for block in self.blocks for factor in block)

    def local_size(self, coord: Coord) -> int:
        """Number of indices on the device at `coord`."""
        return sum(math.prod(f.span(coord)[1] for f in block) for block in self.blocks)

    def start(self, coord: Coord) -> int:
        """First global index on the device at `coord`, for a plain dim."""
        assert self.plain, f"{self} is not contiguous"
        return self.blocks[0][0].span(coord)[0]

    def max_local_size(self) -> int:
        """The largest number of indices on any device, which the first device holds."""
        return sum(math.prod(f.most for f in block) for block in self.blocks)

    def indices(self, coord: Coord) -> list[int]:
        """The global indices on the device at `coord`, in local order."""
        found: list[int] = []
        offset = 0
        for block in self.blocks:
            places = [0]
            for factor in block:
                start, length = factor.span(coord)
                places = [p * factor.size + start + i for p in places for i in range(length)]
            found += [offset + place for place in places]
            offset += block_size(block)
        return found

    def without(self, axes: Iterable[Axis]) -> DimLayout:
        """The layout with `axes` removed wherever they stand."""
        mine = self.axes
        if not mine or not (gone := set(axes)).intersection(mine):
            return self
        return self._map(lambda kept: tuple(axis for axis in kept if axis not in gone))

    @property
    def held_once(self) -> bool:
        """Whether every index has one holder along the axes of the dim."""
        own = set(self.axes)
        return all({axis for f in block for axis in f.axes} == own for block in self.blocks)

    def has_minor(self, axes: Iterable[Axis]) -> bool:
        """Whether no other axis is minor to any of `axes` in a factor that they split."""
        gone = set(axes)
        splits = ([axis in gone for axis in f.axes] for block in self.blocks for f in block)
        return all(split == sorted(split) for split in splits)

    def only(self, axes: Iterable[Axis]) -> DimLayout:
        """The layout with every axis but `axes` removed."""
        mine = self.axes
        if not mine:
            return self
        keep = set(axes)
        return self.without(axis for axis in mine if axis not in keep)

    def held_at(self, axis: Axis, place: int) -> DimLayout:
        """The dim as it lies now at one place along an axis, and empty elsewhere."""
        blocks = []
        for block in self.blocks:
            where = max((i for i, f in enumerate(block) if f.axes), default=0)
            factor = block[where]
            held = Factor(factor.size, (*factor.axes, axis), (*factor.at, (axis.name, place)))
            blocks.append((*block[:where], held, *block[where + 1 :]))
        return DimLayout(tuple(blocks), self.order)

    def ordered(self, order: RowOrder | None) -> DimLayout:
        """The same shards, with their rows in another order."""
        return DimLayout(self.blocks, order)

    def _map(self, change: Callable[[tuple[Axis, ...]], tuple[Axis, ...]]) -> DimLayout:
        """The layout with the axes of every factor changed."""
        changed = (tuple(f.over(change(f.axes)) for f in b) for b in self.blocks)
        return DimLayout(tuple(changed), self.order)

    def __str__(self) -> str:
        return blocks_text(self.blocks) + (f" {self.order}" if self.order is not None else "")


def all_shards_nonempty(dim: DimLayout) -> bool:
    """Whether every factor has at least one index on every device."""
    return all(factor.least > 0 for block in dim.blocks for factor in block)
