"""Steps: the changes of layout, and for each what it does forward and backward.

A step changes the state of a value along its axes and nothing else. `ADJOINTS` is the one table
from which both directions are taken, so a backward cannot disagree with its forward. States: `S`
sharded, `P` partial, `I` invariant, `R` replicated (see `Layout`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from shardlang.ir.layout import DimLayout, Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.route import Route


class Move(str, Enum):
    """What one device does with its piece, alone or with its group."""

    NOTHING = "nothing"
    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    PERMUTE = "permute"
    DISPATCH = "dispatch"
    """Send every row to the device that has its group; the groups are one more operand."""
    COLLECT = "collect"
    """Send every row back."""
    SLICE = "slice"
    PAD = "pad"
    FIRST = "first"
    """Keep on the first device of the group, zero elsewhere."""


COMMUNICATING = {
    Move.ALL_REDUCE: "all_reduce",
    Move.ALL_GATHER: "all_gather",
    Move.REDUCE_SCATTER: "reduce_scatter",
    Move.ALL_TO_ALL: "all_to_all",
    Move.PERMUTE: "send_recv",
    Move.DISPATCH: "all_to_all",
    Move.COLLECT: "all_to_all",
}
"""Moves that send data, with the name that plans and expectations use."""

ADJOINTS: dict[tuple[str, str], tuple[str, Move, Move]] = {
    ("P", "I"): ("all_reduce", Move.ALL_REDUCE, Move.NOTHING),
    ("P", "R"): ("all_reduce", Move.ALL_REDUCE, Move.ALL_REDUCE),
    ("I", "R"): ("vary", Move.NOTHING, Move.ALL_REDUCE),
    ("R", "I"): ("settle", Move.NOTHING, Move.FIRST),
    ("S", "R"): ("all_gather", Move.ALL_GATHER, Move.REDUCE_SCATTER),
    ("S", "I"): ("all_gather", Move.ALL_GATHER, Move.SLICE),
    ("P", "S"): ("reduce_scatter", Move.REDUCE_SCATTER, Move.ALL_GATHER),
    ("R", "S"): ("slice", Move.SLICE, Move.PAD),
    ("I", "S"): ("slice", Move.SLICE, Move.ALL_GATHER),
    ("I", "P"): ("to_partial", Move.FIRST, Move.NOTHING),
    ("R", "P"): ("to_partial", Move.FIRST, Move.FIRST),
    ("S", "P"): ("scatter_partial", Move.PAD, Move.SLICE),
}
"""(state before, state after) along the step's axes: name, forward move, backward move."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change of layout along `axes`.

    Attributes:
        axes: the axes whose state changes (several for all_reduce and vary, one for most).
        src: the layout before.
        dst: the layout after.
        reduce: `sum`, `max` or `min`; the last two are for values without gradient.
        route: for a dispatch or collect, where the rows of dim 0 go.
    """

    axes: tuple[Axis, ...]
    src: Layout
    dst: Layout
    reduce: str = "sum"
    route: Route | None = None

    @property
    def states(self) -> tuple[str, str]:
        """States before and after, along the first axis."""
        return self.src.state(self.axes[0]), self.dst.state(self.axes[0])

    @property
    def ways(self) -> int:
        """Number of devices in one group."""
        return math.prod(axis.size for axis in self.axes)

    @property
    def kind(self) -> str:
        """The step's name: a row of the table, or a move between two dims or axis orders."""
        if self.reduce != "sum":
            return "all_reduce"
        if self.route is not None:
            return self.forward.value
        before, after = self.states
        if before == after == "S":
            return "all_to_all" if self.dims[0] != self.dims[1] else "permute"
        return ADJOINTS[before, after][0]

    @property
    def forward(self) -> Move:
        """What it does forward."""
        if self.reduce != "sum":
            return Move.ALL_REDUCE
        if self.route is not None:
            return Move.COLLECT if self.route.inverse else Move.DISPATCH
        before, after = self.states
        if before == after == "S":
            return Move.ALL_TO_ALL if self.dims[0] != self.dims[1] else Move.PERMUTE
        return ADJOINTS[before, after][1]

    @property
    def backward(self) -> Move:
        """What its gradient does."""
        if self.reduce != "sum":
            return Move.NOTHING
        if self.route is not None:
            return Move.DISPATCH if self.route.inverse else Move.COLLECT
        before, after = self.states
        if before == after == "S":
            return Move.ALL_TO_ALL if self.dims[0] != self.dims[1] else Move.PERMUTE
        if before == "P" and self.kind == "all_reduce":
            return Move.ALL_REDUCE if self.backward_axes else Move.NOTHING
        return ADJOINTS[before, after][2]

    @property
    def backward_axes(self) -> tuple[Axis, ...]:
        """The axes that the backward move covers: those that end in `R` for a reduction."""
        if self.kind == "all_reduce" and self.reduce == "sum":
            return tuple(axis for axis in self.axes if self.dst.state(axis) == "R")
        return self.axes

    @property
    def dims(self) -> tuple[int | None, int | None]:
        """The dim that the first axis splits before, and after."""
        return self.src.dim_of(self.axes[0]), self.dst.dim_of(self.axes[0])

    def cut(self) -> tuple[int, DimLayout, DimLayout]:
        """The dim of a gather, scatter, slice or pad: index, split layout, joined layout."""
        before, after = self.dims
        if before is not None:
            return before, self.src.dims[before], self.dst.dims[before]
        assert after is not None
        return after, self.dst.dims[after], self.src.dims[after]

    def __str__(self) -> str:
        names = ", ".join(axis.name for axis in self.axes)
        return f"{self.kind}[{names}] {self.src} -> {self.dst}"


def apply_step(x: Tensor, step: Step, groups: Tensor | None = None) -> Tensor:
    """Placeholder target of a step node; the simulator and the runtime give it its meaning.

    `groups` is there if the step is a route: those of all rows along its axes.
    """
    raise AssertionError("a step has no meaning outside a runtime")


def apply_steps(xs: tuple[Tensor, ...], steps: tuple[Step, ...]) -> tuple[Tensor, ...]:
    """Placeholder target of several steps of one kind and group, sent as one call."""
    raise AssertionError("a step has no meaning outside a runtime")
