"""Arguments whose value depends on the device: sizes, offsets and shards.

One program text serves every device; these objects stand in it and become numbers at a coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from shardlang.ir.compat import map_leaves
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.experts.route import Route
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Coord, product


@dataclass(frozen=True, slots=True)
class LocalSize:
    """Number of indices of a dim on this device, times `scale`."""

    dim: DimLayout

    def at(self, coord: Coord) -> int:
        """The value on the device at `coord`."""
        return self.dim.local_size(coord)

    def __repr__(self) -> str:
        return f"size({self.dim})"


@dataclass(frozen=True, slots=True)
class LocalStart:
    """First global index of a plain dim on this device."""

    dim: DimLayout

    def at(self, coord: Coord) -> int:
        """The value on the device at `coord`."""
        return self.dim.start(coord)

    def __repr__(self) -> str:
        return f"start({self.dim})"


@dataclass(frozen=True, slots=True)
class LocalIndices:
    """Global indices of a dim on this device, in local order."""

    dim: DimLayout

    def at(self, coord: Coord) -> list[int]:
        """The value on the device at `coord`."""
        return self.dim.indices(coord)

    def __repr__(self) -> str:
        return f"indices({self.dim})"


@dataclass(frozen=True, slots=True)
class LocalShard:
    """The global shape of a tensor and the part of it that this device holds."""

    layout: Layout

    def at(self, coord: Coord) -> LocalShardAt:
        """The value on the device at `coord`."""
        return LocalShardAt(self.layout, dict(coord))

    def __repr__(self) -> str:
        return f"shard({self.layout})"


@dataclass(frozen=True, slots=True)
class LocalShardAt:
    """A `LocalShard` on one device."""

    layout: Layout
    coord: dict[str, int]


@dataclass(frozen=True, slots=True)
class PartNumber:
    """Which of the parts that some axes make this device holds.

    The same number on devices that hold the same part, another one on all others.
    """

    axes: tuple[Axis, ...]

    def at(self, coord: Coord) -> int:
        """The value on the device at `coord`."""
        number = 0
        for axis in self.axes:
            number = number * axis.size + coord[axis.name]
        return number

    def __repr__(self) -> str:
        return f"part({product(self.axes)})"


@dataclass(frozen=True, slots=True)
class ByPart:
    """A number for each of the parts that some axes make."""

    axes: tuple[Axis, ...]
    numbers: tuple[int, ...]

    def at(self, coord: Coord) -> int:
        """The value on the device at `coord`."""
        return self.numbers[PartNumber(self.axes).at(coord)]

    def __repr__(self) -> str:
        names = ", ".join(axis.name for axis in self.axes)
        return f"{list(self.numbers)} by {names}"


@dataclass(frozen=True, slots=True)
class ListByPart:
    """A short list, such as one of dims, for each of the parts that some axes make."""

    axes: tuple[Axis, ...]
    lists: tuple[tuple[int, ...], ...]

    def at(self, coord: Coord) -> list[int]:
        """The value on the device at `coord`."""
        return list(self.lists[PartNumber(self.axes).at(coord)])

    def __repr__(self) -> str:
        each = " or ".join(str(list(one)) for one in self.lists)
        return f"{each} by {', '.join(axis.name for axis in self.axes)}"


@dataclass(frozen=True, slots=True)
class Combined:
    """A number made of others by `+`, `-` or `*`."""

    sign: str
    parts: tuple[Number | int, ...]

    def at(self, coord: Coord) -> int:
        """The value on the device at `coord`."""
        first, *others = (p if isinstance(p, int) else p.at(coord) for p in self.parts)
        for other in others:
            if self.sign == "*":
                first *= other
            else:
                first += other if self.sign == "+" else -other
        return first

    def __repr__(self) -> str:
        return f" {self.sign} ".join(
            f"({part})" if isinstance(part, Combined) else str(part) for part in self.parts
        )


Number: TypeAlias = "LocalSize | LocalStart | PartNumber | ByPart | Combined"
"""A whole number that depends on the device."""

_TreeT = TypeVar("_TreeT")


def size_at(dim: DimLayout) -> int | LocalSize:
    """The local size as a number where it is the same on every device."""
    return dim.max_local_size() if dim.even else LocalSize(dim)


_KINDS = (
    LocalSize, LocalStart, LocalIndices, LocalShard, PartNumber, ByPart, ListByPart, Route,
    Combined,
)  # fmt: skip


def specialise(args: _TreeT, coord: Coord) -> _TreeT:
    """Replace every device-dependent argument by its value at `coord`."""
    return map_leaves(args, lambda one: one.at(coord) if isinstance(one, _KINDS) else one)


def at_device(value: object, coord: Coord) -> object:
    """One argument on the device at `coord`."""
    return value.at(coord) if isinstance(value, _KINDS) else value


def differ(args: object) -> bool:
    """Whether some argument depends on the device."""
    found: list[object] = []
    map_leaves(args, lambda one: found.append(one) if isinstance(one, _KINDS) else None)
    return bool(found)
