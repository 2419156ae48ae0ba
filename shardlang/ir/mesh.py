"""The device mesh: named axes, and the devices as coordinates along them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

Coord = Mapping[str, int]
"""Position of one device: axis name to index along that axis."""

BANDWIDTHS = {
    "nvlink": 450e9,
    "pcie": 50e9,
    "ib": 50e9,
    "roce": 50e9,
    "ethernet": 12.5e9,
}
"""Bytes per second that one device sends over a link named in `mesh`, at best: NVLink 4, PCIe 5
with 16 lanes, one 400 Gb/s InfiniBand or RoCE port per device, 100 Gb/s Ethernet."""


@dataclass(frozen=True, slots=True)
class Part:
    """Where a part of an axis lies: the number of a device along an axis is a mixed-radix number.

    Attributes:
        of: the name of the axis.
        whole: the number of devices along it.
        after: the number of shards that the more major parts make.
    """

    of: str
    whole: int
    after: int


@dataclass(frozen=True, slots=True)
class Axis:
    """One mesh axis: a name, the number of devices along it, and the link it runs over.

    Attributes:
        part: which part of an axis it is, where the axis is used in parts.
    """

    name: str
    size: int
    link: str | None = None
    part: Part | None = None

    def __lt__(self, other: Axis) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[str, int]:
        return (self.name, 0) if self.part is None else (self.part.of, self.part.after)

    @property
    def stretch(self) -> tuple[str, int, int]:
        """The axis that it is a part of, and the number of shards before it and after it."""
        if self.part is None:
            return self.name, 1, self.size
        return self.part.of, self.part.after, self.part.after * self.size

    def cut(self, after: int, size: int) -> Axis:
        """The part of this whole axis that makes `size` shards of each of `after` ones."""
        if size == self.size:
            return self
        name = part_name(self.name, self.size, after, size)
        return Axis(name, size, self.link, Part(self.name, self.size, after))

    def __str__(self) -> str:
        return self.name


def part_name(of: str, whole: int, after: int, size: int) -> str:
    """`tp:4` is the major part of 4 shards, `tp/4` the rest, `tp/2:2` a part between."""
    before = f"/{after}" if after > 1 else ""
    return of + before + (f":{size}" if after * size < whole else "")


def joined(axes: Iterable[Axis]) -> tuple[Axis, ...]:
    """The axes, with the parts of one axis that follow one another as one part, or the whole."""
    found: list[Axis] = []
    for axis in axes:
        last = found[-1].part if found else None
        if last is None or axis.part is None or found[-1].stretch[::2] != axis.stretch[:2]:
            found.append(axis)
            continue
        size = found.pop().size * axis.size
        found.append(Axis(last.of, last.whole, axis.link).cut(last.after, size))
    return tuple(found)


def product(axes: Iterable[Axis]) -> str:
    """`dp*tp`, `tp:4`."""
    return "*".join(axis.name for axis in joined(axes))


@dataclass(frozen=True, slots=True)
class Mesh:
    """Named axes, major to minor: the last axis varies fastest in the device number."""

    axes: tuple[Axis, ...]

    @property
    def devices(self) -> int:
        """Number of devices, the product of all axis sizes."""
        return math.prod(axis.size for axis in self.axes)

    def __getitem__(self, name: str) -> Axis:
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise KeyError(name)

    def __contains__(self, name: str) -> bool:
        return any(axis.name == name for axis in self.axes)

    def named(self, names: Iterable[str]) -> tuple[Axis, ...]:
        """The axes that names stand for: an axis that is used in parts stands for all of them.

        Raises:
            KeyError: there is no such axis, or its parts do not make up the named one.
        """
        return tuple(axis for name in names for axis in self._named(name))

    def _named(self, name: str) -> tuple[Axis, ...]:
        for start in range(len(self.axes)):
            for end in range(start + 1, len(self.axes) + 1):
                both = joined(self.axes[start:end])
                if len(both) > 1:
                    break
                if both[0].name == name:
                    return self.axes[start:end]
        raise KeyError(name)

    @property
    def whole(self) -> Mesh:
        """The mesh with the parts of every axis joined."""
        return Mesh(joined(self.axes))

    def in_parts(self, cuts: Mapping[str, Iterable[int]]) -> Mesh:
        """The mesh with axes in parts.

        Args:
            cuts: by the name of a whole axis, numbers of shards, each a multiple of the one below
                it: a part ends at each of them.
        """
        found: list[Axis] = []
        for axis in self.whole.axes:
            ends = [*sorted({*cuts.get(axis.name, ())} - {1, axis.size}), axis.size]
            pairs = zip([1, *ends], ends, strict=False)
            found += [axis.cut(after, end // after) for after, end in pairs] or [axis]
        return Mesh(tuple(found))

    def coord(self, device: int) -> dict[str, int]:
        """The coordinate of a device number."""
        coord: dict[str, int] = {}
        for axis in reversed(self.axes):
            device, coord[axis.name] = divmod(device, axis.size)
        return {axis.name: coord[axis.name] for axis in self.axes}

    def device(self, coord: Coord) -> int:
        """The device number of a coordinate."""
        number = 0
        for axis in self.axes:
            number = number * axis.size + coord[axis.name]
        return number

    def coords(self) -> Iterator[dict[str, int]]:
        """Every coordinate, in the order of the device numbers."""
        return (self.coord(device) for device in range(self.devices))

    def groups(self, axes: tuple[Axis, ...]) -> list[list[int]]:
        """Device numbers of every group that spans `axes`, in major-to-minor order of `axes`."""
        names = {axis.name for axis in axes}
        rest = [axis for axis in self.axes if axis.name not in names]
        groups = []
        for outer in itertools.product(*(range(axis.size) for axis in rest)):
            base = {axis.name: i for axis, i in zip(rest, outer, strict=True)}
            group = []
            for inner in itertools.product(*(range(axis.size) for axis in axes)):
                inside = {axis.name: i for axis, i in zip(axes, inner, strict=True)}
                group.append(self.device({**base, **inside}))
            groups.append(group)
        return groups

    def __str__(self) -> str:
        return ", ".join(f"{axis.name} = {axis.size}" for axis in self.whole.axes)
