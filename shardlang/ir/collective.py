"""Collectives: what every device does to bring a value from one layout to another, one way.

A `Collective` is all that an executor, a price or a step program needs to know of one direction of
a change of layout. Which one a change takes, and which one its gradient takes, says the table of
`shardlang.ir.reshard`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.edges import reads_others
from shardlang.ir.experts.route import Route
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Coord, joined
from shardlang.ir.reads import Reads


class Kind(str, Enum):
    """What one device does with what it holds, alone or with its group."""

    NOTHING = "nothing"
    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    PERMUTE = "permute"
    EXCHANGE = "exchange"
    """Send every device what it holds after, of several dims at once."""
    HALO = "halo"
    """Get what one's own part of a dim reads of the others' parts of another."""
    FOLD = "fold"
    """Give back what was read, and add up what comes back."""
    DISPATCH = "dispatch"
    """Send every row to the device that has its group; the groups are one more operand."""
    COLLECT = "collect"
    """Send every row back."""
    SLICE = "slice"
    PAD = "pad"
    FIRST = "first"
    """Keep on the first device of the group, zero elsewhere."""
    ZERO = "zero"
    """Zeros: the gradient of what has none."""


class ReduceOp(str, Enum):
    """How what the devices hold is combined."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"

    __str__ = str.__str__


COMMUNICATING = {
    Kind.ALL_REDUCE: "all_reduce",
    Kind.ALL_GATHER: "all_gather",
    Kind.REDUCE_SCATTER: "reduce_scatter",
    Kind.ALL_TO_ALL: "all_to_all",
    Kind.PERMUTE: "send_recv",
    Kind.EXCHANGE: "all_to_all",
    Kind.HALO: "send_recv",
    Kind.FOLD: "send_recv",
    Kind.DISPATCH: "all_to_all",
    Kind.COLLECT: "all_to_all",
}
"""Kinds that send data, with the name that plans and expectations use."""


@dataclass(frozen=True, slots=True)
class Collective:
    """One direction of a change of layout.

    Attributes:
        kind: what every device does.
        axes: the axes along which it does it; none for `NOTHING`.
        src: the layout before.
        dst: the layout after.
        reduce: how an all-reduce combines.
        route: for a dispatch or collect, where the rows of dim 0 go.
        reads: for a halo or fold, which index each index of the split dim reads.
    """

    kind: Kind
    axes: tuple[Axis, ...]
    src: Layout
    dst: Layout
    reduce: ReduceOp = ReduceOp.SUM
    route: Route | None = None
    reads: Reads | None = None

    @property
    def members(self) -> int:
        """Number of devices in one group."""
        return math.prod(axis.size for axis in self.axes)

    @property
    def sends(self) -> bool:
        """Whether data goes from one device to another."""
        return self.kind in COMMUNICATING and self.members > 1 and self._reads_others()

    def _reads_others(self) -> bool:
        """Whether it is no halo or fold in which every device reads its own shard alone."""
        if self.reads is None:
            return True
        place = self.src.dim_of(self.axes[0])
        assert place is not None
        ends = (self.src.dims[place], self.dst.dims[place])
        return reads_others(*(ends[::-1] if self.reads.back else ends), self.reads.there)

    @property
    def op(self) -> str:
        """The name of its call in plans and expectations, for a kind that sends data."""
        return COMMUNICATING[self.kind]

    @property
    def dims(self) -> tuple[int | None, int | None]:
        """The dim that the first axis splits before, and after."""
        return self.src.dim_of(self.axes[0]), self.dst.dim_of(self.axes[0])

    def cut(self) -> tuple[int, DimLayout, DimLayout]:
        """The dim of a gather, scatter, slice or pad, with its narrower and its wider layout.

        Of a permute, the dim with its layout before and after.
        """
        before, after = self.dims
        if before is not None:
            return before, self.src.dims[before], self.dst.dims[before]
        assert after is not None, f"{self} cuts no dim"
        return after, self.dst.dims[after], self.src.dims[after]

    def local_shape(self, coord: Coord) -> tuple[int | None, ...]:
        """The shape of its result on the device at `coord`; None for a size that data decides."""
        shape = self.dst.local_shape(coord)
        return (None, *shape[1:]) if self.kind is Kind.DISPATCH else shape

    def __str__(self) -> str:
        names = ", ".join(axis.name for axis in joined(self.axes))
        return f"{self.kind.value}[{names}] {self.src} -> {self.dst}"
