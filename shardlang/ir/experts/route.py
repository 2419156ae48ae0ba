"""Routes: rows sent to the devices that hold the matrix of their group, and back.

A route is a permutation of the rows of a split dim between the devices of some axes. Which one, the
groups of the rows say: every device knows them all along these axes, and so how many rows go from
where to where (`shardlang.ir.experts.row_exchange`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shardlang.ir.dim_layout import DimLayout, RowOrder
from shardlang.ir.mesh import Axis, Coord


@dataclass(frozen=True, slots=True)
class Route:
    """Where rows go.

    Attributes:
        axes: the axes between whose devices rows move, in the order of the mesh.
        rows: how the rows are split before a dispatch and after a collect.
        groups: how the groups are split.
        inverse: whether rows come back (`collect`) or go out (`dispatch`).
        by: the name of the value that says which group each row has.
    """

    axes: tuple[Axis, ...]
    rows: DimLayout
    groups: DimLayout
    inverse: bool = False
    by: str = ""

    @property
    def order(self) -> RowOrder:
        """The order of rows that are out."""
        return RowOrder(self.by, self.groups)

    @property
    def known(self) -> DimLayout:
        """How the groups of the rows must lie: every device knows those of all rows that move.

        An axis that is minor to one of the route's own cuts finer than they do, so its groups are
        needed whole too.
        """
        minor = set(self.axes)
        for block in self.rows.blocks:
            for factor in block:
                places = [i for i, axis in enumerate(factor.axes) if axis in self.axes]
                minor.update(factor.axes[min(places) :] if places else ())
        return self.rows.without(minor)

    @property
    def goal(self) -> str:
        """Where rows go, in words."""
        return "go back to their tokens" if self.inverse else "go to their experts"

    def at(self, coord: Coord) -> RouteAt:
        """The route on the device at `coord`, the same for a dispatch and its collect."""
        return RouteAt(replace(self, inverse=False, by=""), tuple(sorted(coord.items())))

    def reversed(self) -> Route:
        """The way back of the same rows."""
        return replace(self, inverse=not self.inverse)

    def __repr__(self) -> str:
        return f"route({self.rows} by {self.groups})"


@dataclass(frozen=True, slots=True)
class RouteAt:
    """A `Route` on one device."""

    route: Route
    coord: tuple[tuple[str, int], ...]
