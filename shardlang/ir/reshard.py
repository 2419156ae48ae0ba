"""Reshards: the changes of layout, each made of two collectives, forward and adjoint.

A reshard changes the state of a value along its axes and nothing else; a halo makes one dim longer
or shorter besides. States: `S` sharded, `P`
partial, `I` invariant, `R` replicated (see `Layout`). `CHANGES` is the one table of what a change
does. The adjoint stands in it too: a gradient has the dual layout of its value (`Layout.dual`), and
goes from the dual of the layout after to the dual of the layout before. So a backward cannot
disagree with its forward, and the adjoint of an adjoint is the forward itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from torch import Tensor

from shardlang.ir.collective import Collective, Kind, ReduceOp
from shardlang.ir.experts.route import Route
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, joined
from shardlang.ir.reads import Reads
from shardlang.ir.state import State


class How(str, Enum):
    """What tells changes between the same states apart."""

    STATE = "state"
    """The state itself changes."""
    DIM = "dim"
    """The axis splits another dim."""
    ORDER = "order"
    """The axis splits the same dim, in another order or in other blocks."""
    EXCHANGE = "exchange"
    """Several axes trade places between dims."""
    HALO = "halo"
    """The dim of the axes reads another one, of which devices get what their parts read."""
    FOLD = "fold"
    """What was read goes back."""
    DISPATCH = "dispatch"
    """Rows go to the devices that have their groups."""
    COLLECT = "collect"
    """Rows come back."""
    MAX = "max"
    MIN = "min"


class Change(str, Enum):
    """The names of changes."""

    ALL_REDUCE = "all_reduce"
    VARY = "vary"
    SETTLE = "settle"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    SLICE = "slice"
    TO_PARTIAL = "to_partial"
    SCATTER_PARTIAL = "scatter_partial"
    ALL_TO_ALL = "all_to_all"
    PERMUTE = "permute"
    EXCHANGE = "exchange"
    HALO = "halo"
    FOLD = "fold"
    DISPATCH = "dispatch"
    COLLECT = "collect"

    __str__ = str.__str__


class Row(NamedTuple):
    """A row of the table: the change's name, and what devices do."""

    name: Change
    kind: Kind


CHANGES: dict[tuple[State, State, How], Row] = {
    (State.PARTIAL, State.INVARIANT, How.STATE): Row(Change.ALL_REDUCE, Kind.ALL_REDUCE),
    (State.PARTIAL, State.REPLICATED, How.STATE): Row(Change.ALL_REDUCE, Kind.ALL_REDUCE),
    (State.INVARIANT, State.REPLICATED, How.STATE): Row(Change.VARY, Kind.NOTHING),
    (State.REPLICATED, State.INVARIANT, How.STATE): Row(Change.SETTLE, Kind.NOTHING),
    (State.SHARDED, State.REPLICATED, How.STATE): Row(Change.ALL_GATHER, Kind.ALL_GATHER),
    (State.SHARDED, State.INVARIANT, How.STATE): Row(Change.ALL_GATHER, Kind.ALL_GATHER),
    (State.PARTIAL, State.SHARDED, How.STATE): Row(Change.REDUCE_SCATTER, Kind.REDUCE_SCATTER),
    (State.REPLICATED, State.SHARDED, How.STATE): Row(Change.SLICE, Kind.SLICE),
    (State.INVARIANT, State.SHARDED, How.STATE): Row(Change.SLICE, Kind.SLICE),
    (State.INVARIANT, State.PARTIAL, How.STATE): Row(Change.TO_PARTIAL, Kind.FIRST),
    (State.REPLICATED, State.PARTIAL, How.STATE): Row(Change.TO_PARTIAL, Kind.FIRST),
    (State.SHARDED, State.PARTIAL, How.STATE): Row(Change.SCATTER_PARTIAL, Kind.PAD),
    (State.SHARDED, State.SHARDED, How.DIM): Row(Change.ALL_TO_ALL, Kind.ALL_TO_ALL),
    (State.SHARDED, State.SHARDED, How.ORDER): Row(Change.PERMUTE, Kind.PERMUTE),
    (State.SHARDED, State.SHARDED, How.EXCHANGE): Row(Change.EXCHANGE, Kind.EXCHANGE),
    (State.SHARDED, State.SHARDED, How.HALO): Row(Change.HALO, Kind.HALO),
    (State.SHARDED, State.SHARDED, How.FOLD): Row(Change.FOLD, Kind.FOLD),
    (State.SHARDED, State.SHARDED, How.DISPATCH): Row(Change.DISPATCH, Kind.DISPATCH),
    (State.SHARDED, State.SHARDED, How.COLLECT): Row(Change.COLLECT, Kind.COLLECT),
    (State.INVARIANT, State.INVARIANT, How.MAX): Row(Change.ALL_REDUCE, Kind.ALL_REDUCE),
    (State.INVARIANT, State.INVARIANT, How.MIN): Row(Change.ALL_REDUCE, Kind.ALL_REDUCE),
}
"""(state before, state after, how) along one axis. A maximum or minimum has no gradient."""


def gradient_kind(before: State, after: State) -> Kind:
    """What the gradient of a change between two different states takes: the row of their duals."""
    return CHANGES[after.dual, before.dual, How.STATE].kind


class NoChange(ValueError):
    """No reshard leads from one layout to the other along these axes."""


@dataclass(frozen=True, slots=True)
class Reshard:
    """One change of layout along `axes`.

    Attributes:
        axes: the axes whose state changes (several for all_reduce and vary, one for most).
        src: the layout before.
        dst: the layout after.
        reduce: how an all-reduce combines; a maximum or minimum is for values without gradient.
        route: for a dispatch or collect, where the rows of dim 0 go.
        reads: for a halo or fold, which index each index of the dim of the axes reads.
        kind: its name in the table.
        forward: what it does to the value.
        adjoint: what it does to the gradient.

    Raises:
        NoChange: an axis has no row in the table, or the axes' rows are not one collective.
    """

    axes: tuple[Axis, ...]
    src: Layout
    dst: Layout
    reduce: ReduceOp = ReduceOp.SUM
    route: Route | None = None
    reads: Reads | None = None
    kind: Change = field(init=False, compare=False)
    forward: Collective = field(init=False, compare=False, repr=False)
    adjoint: Collective = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        along = self.route or self.reads
        name, forward = _one_way(self.axes, self.src, self.dst, self.reduce, along)
        object.__setattr__(self, "kind", name)
        object.__setattr__(self, "forward", forward)
        object.__setattr__(self, "adjoint", _adjoint(self))

    @property
    def differentiable(self) -> bool:
        """Whether it has a gradient."""
        return self.adjoint.kind is not Kind.ZERO

    @property
    def states(self) -> tuple[State, State]:
        """States before and after, along the first axis."""
        return self.src.state(self.axes[0]), self.dst.state(self.axes[0])

    @property
    def dims(self) -> tuple[int | None, int | None]:
        """The dim that the first axis splits before, and after."""
        return self.src.dim_of(self.axes[0]), self.dst.dim_of(self.axes[0])

    def transposed(self) -> Reshard:
        """The change that gradients go through: its forward is this one's adjoint, and vice versa.

        Raises:
            NoChange: a maximum or minimum has no gradient.
        """
        if not self.differentiable:
            raise NoChange(f"{self} has no gradient")
        route = self.route.reversed() if self.route is not None else None
        reads = self.reads.reversed() if self.reads is not None else None
        return Reshard(self.axes, self.dst.dual(), self.src.dual(), route=route, reads=reads)

    def __str__(self) -> str:
        return f"{self.kind}[{_names(self.axes)}] {self.src} -> {self.dst}"


def _adjoint(reshard: Reshard) -> Collective:
    """From the layout of the gradient after the change to that of the gradient before it."""
    src, dst = reshard.dst.dual(), reshard.src.dual()
    if reshard.reduce is not ReduceOp.SUM:
        return Collective(Kind.ZERO, reshard.axes, src, dst)
    along = reshard.route or reshard.reads
    back = along.reversed() if along is not None else None
    return _one_way(reshard.axes, src, dst, ReduceOp.SUM, back)[1]


Along = Route | Reads | None
"""What a change goes by beside its layouts."""


def _one_way(
    axes: tuple[Axis, ...], src: Layout, dst: Layout, reduce: ReduceOp, along: Along
) -> tuple[Change, Collective]:
    """The change's name and its collective, over those of the axes that it has something to do."""
    route = along if isinstance(along, Route) else None
    reads = along if isinstance(along, Reads) else None
    if route is None and _moves_ordered_rows(src, dst):
        raise NoChange(f"only a route moves rows that a route has sent: {src} -> {dst}")
    if reads is not None and not _reads_one_dim(axes, src, dst, reads):
        raise NoChange(f"{reads} is not what {src} -> {dst} reads over {_names(axes)}")
    how = _how(axes, src, dst, reduce, along)
    rows = [_row(axis, src, dst, how) for axis in axes]
    pairs = zip(axes, rows, strict=True)
    acting = [(axis, row) for axis, row in pairs if row.kind is not Kind.NOTHING]
    if not acting:
        return rows[0].name, Collective(Kind.NOTHING, (), src, dst)
    name, kind = acting[0][1]
    if any(row.kind is not kind for _, row in acting):
        raise NoChange(f"{src} -> {dst} over {_names(axes)} is not one collective")
    over = tuple(axis for axis, _ in acting)
    if kind in _OF_ONE_DIM and not _cuts_one_dim(over, src, dst):
        raise NoChange(f"{src} -> {dst} over {_names(axes)} is of two dims, one for each")
    return name, Collective(kind, over, src, dst, reduce, route, reads)


_OF_ONE_DIM = (Kind.ALL_GATHER, Kind.REDUCE_SCATTER, Kind.SLICE, Kind.PAD)
"""Kinds that join or cut one dim, as `Collective.cut` has it."""


def _cuts_one_dim(axes: tuple[Axis, ...], src: Layout, dst: Layout) -> bool:
    """Whether all axes split the same dim, before or after."""
    narrow = src if src.dim_of(axes[0]) is not None else dst
    return len({narrow.dim_of(axis) for axis in axes}) == 1


def _names(axes: tuple[Axis, ...]) -> str:
    return ", ".join(axis.name for axis in joined(axes))


def _reads_one_dim(axes: tuple[Axis, ...], src: Layout, dst: Layout, reads: Reads) -> bool:
    """Whether one dim reads as is said, both dims split by these axes alone."""
    place = src.dim_of(axes[0])
    if place is None or len(src.dims) != len(dst.dims):
        return False
    one, other = src.dims[place], dst.dims[place]
    split = one.plain and other.plain and one.axes == other.axes and {*axes} == {*one.axes}
    read, made = (other, one) if reads.back else (one, other)
    sizes = (read.size, made.size) == (reads.size, reads.length)
    return split and sizes and reads.fits and src.replaced(place, other).dims == dst.dims


def _moves_ordered_rows(src: Layout, dst: Layout) -> bool:
    """Whether a dim whose rows are in the order of a route lies otherwise after a change."""
    pairs = zip(src.dims, dst.dims, strict=True)
    return any(one != other and (one.order or other.order) is not None for one, other in pairs)


def _how(axes: tuple[Axis, ...], src: Layout, dst: Layout, reduce: ReduceOp, along: Along) -> How:
    """What tells the change from others between the same states."""
    if reduce is not ReduceOp.SUM:
        return How(reduce.value)
    if isinstance(along, Route):
        return How.COLLECT if along.inverse else How.DISPATCH
    if along is not None:
        return How.FOLD if along.back else How.HALO
    if any(layout.state(axis) is not State.SHARDED for axis in axes for layout in (src, dst)):
        return How.STATE
    pairs = zip(src.dims, dst.dims, strict=True)
    changed = [place for place, (one, other) in enumerate(pairs) if one != other]
    if not changed or (len(changed) == 1 and {src.dim_of(axis) for axis in axes} == {*changed}):
        return How.ORDER
    return How.DIM if _moves_to_one_dim(axes, src, dst, changed) else How.EXCHANGE


def _moves_to_one_dim(axes: tuple[Axis, ...], src: Layout, dst: Layout, changed: list[int]) -> bool:
    """Whether all axes leave one dim for another one, each dim losing or getting them alone."""
    before, after = src.dim_of(axes[0]), dst.dim_of(axes[0])
    if before is None or after is None or {before, after} != set(changed):
        return False
    if any((src.dim_of(axis), dst.dim_of(axis)) != (before, after) for axis in axes):
        return False
    if not (src.dims[before].held_once and dst.dims[after].held_once):
        return False
    wide, narrow = src.dims[before].without(axes), dst.dims[after].without(axes)
    if wide != dst.dims[before] or narrow != src.dims[after]:
        return False
    return src.dims[before].has_minor(axes) and dst.dims[after].has_minor(axes)


def _row(axis: Axis, src: Layout, dst: Layout, how: How) -> Row:
    """The row of the table along one axis."""
    before, after = src.state(axis), dst.state(axis)
    found = CHANGES.get((before, after, how))
    if found is None:
        raise NoChange(f"no reshard leads from {before} to {after} over `{axis}`: {src} -> {dst}")
    return found


def apply_reshard(x: Tensor, reshard: Reshard, groups: Tensor | None = None) -> Tensor:
    """Placeholder target of a reshard node; the simulator and the runtime give it its meaning.

    `groups` is there if the reshard is a route: those of all rows along its axes.
    """
    raise AssertionError("a reshard has no meaning outside a runtime")


def apply_reshards(xs: tuple[Tensor, ...], reshards: tuple[Reshard, ...]) -> tuple[Tensor, ...]:
    """Placeholder target of several reshards of one kind and group, sent as one call."""
    raise AssertionError("a reshard has no meaning outside a runtime")
