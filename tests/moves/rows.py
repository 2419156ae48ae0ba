"""One reshard for every row of the table, on a mesh of one axis."""

from __future__ import annotations

from shardlang.ir.collective import ReduceOp
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.experts.route import Route
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis
from shardlang.ir.reads import Reads
from shardlang.ir.reshard import How, Reshard
from shardlang.ir.state import State

A, B = Axis("a", 2), Axis("b", 2)
SPLIT = DimLayout.shard(6, (A,))
BLOCKS = DimLayout.shard(6, (A,), 3)
SPLIT_B = DimLayout.shard(6, (B,))
WHOLE = DimLayout.whole(6)


def in_state(state: State) -> Layout:
    """A layout in a state along the axis."""
    partial, varying = (
        frozenset((A,)) if state is mark else frozenset()
        for mark in (State.PARTIAL, State.REPLICATED)
    )
    return Layout((SPLIT if state is State.SHARDED else WHOLE, WHOLE), partial, varying)


def example(before: State, after: State, how: How) -> Reshard:
    """A reshard between two states; of another dim, order or route as `how` says."""
    src, dst = in_state(before), in_state(after)
    if how in (How.MAX, How.MIN):
        return Reshard((A,), src, dst, ReduceOp(how.value))
    if how in (How.DISPATCH, How.COLLECT):
        return Reshard((A,), src, dst, route=Route((A,), SPLIT, SPLIT, how is How.COLLECT))
    if how in (How.HALO, How.FOLD):
        made = Reshard((A,), src, dst, reads=Reads.of(6, [range(5, 6), range(5)]))
        return made if how is How.HALO else made.transposed()
    if how is How.EXCHANGE:
        first, second = Layout((SPLIT, SPLIT_B)), Layout((SPLIT_B, SPLIT))
        return Reshard((A, B), first, second)
    if before is after is State.SHARDED and how is not How.STATE:
        dst = Layout((WHOLE, SPLIT) if how is How.DIM else (BLOCKS, WHOLE))
    return Reshard((A,), src, dst)
