"""Layouts: how one tensor lies on the mesh, dim by dim, and its state along every axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from shardlang.ir.dim_layout import DimLayout, RowOrder
from shardlang.ir.mesh import Axis, Coord, joined
from shardlang.ir.state import State


@dataclass(frozen=True, slots=True)
class Layout:
    """How one tensor lies on the mesh.

    Attributes:
        dims: one `DimLayout` per tensor dim.
        partial: axes along which each device holds a summand (state P).
        varying: axes along which every device holds the whole value and a summand of the
            gradient (state R). Any axis named nowhere is invariant (state I).
    """

    dims: tuple[DimLayout, ...]
    partial: frozenset[Axis] = frozenset()
    varying: frozenset[Axis] = frozenset()

    @staticmethod
    def whole(shape: Iterable[int]) -> Layout:
        """Every device holds the whole tensor."""
        return Layout(tuple(DimLayout.whole(int(size)) for size in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """The global shape."""
        return tuple(dim.size for dim in self.dims)

    @property
    def sharded(self) -> tuple[Axis, ...]:
        """Axes that split some dim."""
        return tuple(axis for dim in self.dims for axis in dim.axes)

    def dim_of(self, axis: Axis) -> int | None:
        """The dim that `axis` splits."""
        return next((i for i, dim in enumerate(self.dims) if axis in dim.axes), None)

    def state(self, axis: Axis) -> State:
        """The state along one axis."""
        if self.dim_of(axis) is not None:
            return State.SHARDED
        if axis in self.partial:
            return State.PARTIAL
        return State.REPLICATED if axis in self.varying else State.INVARIANT

    def local_shape(self, coord: Coord) -> tuple[int, ...]:
        """The shape of the shard on the device at `coord`."""
        return tuple(dim.local_size(coord) for dim in self.dims)

    def max_local_shape(self) -> tuple[int, ...]:
        """The largest local shape, which the first device holds."""
        return tuple(dim.max_local_size() for dim in self.dims)

    def held(self) -> int:
        """Elements on the fullest device."""
        return math.prod(self.max_local_shape())

    def replaced(self, dim: int, layout: DimLayout) -> Layout:
        """This layout with one dim laid out anew."""
        dims = (*self.dims[:dim], layout, *self.dims[dim + 1 :])
        return Layout(dims, self.partial, self.varying)

    def without(self, axes: Iterable[Axis]) -> Layout:
        """This layout with the dims that `axes` split no longer split by them."""
        gone = tuple(axes)
        return Layout(tuple(dim.without(gone) for dim in self.dims), self.partial, self.varying)

    def held_at(self, axis: Axis, place: int) -> Layout:
        """This layout at one place along an axis, where all of it lies; it is empty elsewhere.

        A tensor without dims cannot be empty: it stays whole on every device.
        """
        if not self.dims:
            return self
        return self.replaced(0, self.dims[0].held_at(axis, place))

    @property
    def orders(self) -> tuple[RowOrder | None, ...]:
        """The order of every dim's rows, None for rows in their own places."""
        return tuple(dim.order for dim in self.dims)

    def in_place(self) -> Layout:
        """This layout with the rows of every dim in their own places."""
        if not any(self.orders):
            return self
        dims = tuple(dim.ordered(None) for dim in self.dims)
        return Layout(dims, self.partial, self.varying)

    def dual(self) -> Layout:
        """The layout of its gradient: whole for each summand, a summand for each `R` copy."""
        return Layout(self.dims, self.varying, self.partial)

    def unlabelled(self) -> Layout:
        """The same layout with no gradient label."""
        return Layout(self.dims, self.partial) if self.varying else self

    def __str__(self) -> str:
        marks = [f"+{a}" for a in joined(sorted(self.partial))]
        marks += [f"~{a}" for a in joined(sorted(self.varying))]
        return " ".join(["[" + ", ".join(str(dim) for dim in self.dims) + "]", *marks])
