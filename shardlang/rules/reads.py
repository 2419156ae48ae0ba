"""The rule of a dim that reads another, and the lowerings that write one.

Where the dim is split, `read` becomes a halo: every device gets what its own part reads of the
others' shards, and nothing else. Both dims are split contiguously and evenly, each by itself, so
uneven sizes and edges of several neighbours are no special cases.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from shardlang.ir.graph import constrain
from shardlang.ir.node import layout_of
from shardlang.ir.reads import Reads, Stretch
from shardlang.ir.reshard import Reshard, apply_reshard
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.local_reads import listed, read, read_here
from shardlang.rules.op_rule import Emit
from shardlang.rules.registry import rule
from shardlang.rules.writing import arrow, names, swapped


def reads_in(call: Call) -> Reads:
    """What a call of `read` reads."""
    reads = call["reads"]
    assert isinstance(reads, Reads)
    return reads


def _spec(call: Call) -> str:
    dims, at = names(len(call.shapes[0])), call.integer("dim")
    return arrow([dims], [swapped(dims, at, f"r@{dims[at]}")])


def _as_reshard(call: Call, sharding: Sharding) -> LocalCall:
    """The reshard that the runtime knows, between layouts that carry their labels by now."""
    x, reads = call.operand("x"), reads_in(call)
    src, dst = layout_of(x), layout_of(call.node)
    axes = src.dims[call.integer("dim")].axes
    if not axes:
        return read_here, (x, call["dim"], listed(reads), reads.fill), {}
    return apply_reshard, (x, Reshard(axes, src, dst, reads=reads)), {}


rule(
    read,
    spec=_spec, linear=lambda call: [] if reads_in(call).fill else ["x"], localize=_as_reshard,
    always=True, keeps="", view=False,
)  # fmt: skip


def emit_reads(
    emit: Emit, x: fx.Node, dim: int, size: int, stretches: Iterable[Stretch], fill: complex = 0.0
) -> fx.Node:
    """Let a dim of `size` indices be read in stretches, unless that changes nothing."""
    reads = Reads.of(size, stretches, fill)
    if reads == Reads.of(size, [range(size)], fill):
        return x
    inner = read_before(x, dim)
    if inner is not None:
        base, first = inner
        made = reads.after(first)
        if made is not None:
            return emit(read, base, dim, made)
    return emit(read, x, dim, reads)


def unplaced(x: fx.Node) -> fx.Node:
    """The value before its layout is stated."""
    while x.target is constrain:
        source = x.args[0]
        assert isinstance(source, fx.Node)
        x = source
    return x


def read_before(x: fx.Node, dim: int) -> tuple[fx.Node, Reads] | None:
    """What a value reads along a dim, and of what, if it is read itself."""
    if x.target is not read or x.args[1] != dim:
        return None
    base, _, reads = x.args
    assert isinstance(base, fx.Node) and isinstance(reads, Reads)
    return base, reads


def tied(call: Call, places: Iterable[int]) -> str:
    """The rule of an op whose results read its operand along some dims, and no other dim."""
    chosen, dims = set(places), names(len(call.shapes[0]))
    before = [f"x{i}~" if i in chosen else dim for i, dim in enumerate(dims)]
    after = [f"y{i}@x{i}" if i in chosen else dim for i, dim in enumerate(dims)]
    return arrow([before], [after])
