"""The device mesh: named axes, and the devices as coordinates along them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
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


@dataclass(frozen=True, slots=True, order=True)
class Axis:
    """One mesh axis: a name, the number of devices along it, and the link it runs over."""

    name: str
    size: int
    link: str | None = None

    def __str__(self) -> str:
        return self.name


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
        return ", ".join(f"{axis.name} = {axis.size}" for axis in self.axes)
