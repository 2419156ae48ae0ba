"""Rules of ops that move elements along dims: roll, flip, rot90 and padding.

A dim that they move along reads its neighbours where it is split.
"""

from __future__ import annotations

import torch
from torch import fx

from shardlang.ir.reads import Stretch
from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.rules.call import Call
from shardlang.rules.op_rule import Emit
from shardlang.rules.reads import emit_reads, tied
from shardlang.rules.registry import rule
from shardlang.rules.writing import arrow, names, with_whole

aten = torch.ops.aten


def _rolled(call: Call) -> dict[int, int]:
    """By dim, how far it is rolled; every dim by itself."""
    rank, shifts = len(call.shapes[0]), call.integers("shifts")
    dims = [dim % rank for dim in call.integers("dims")] or [0]
    found = dict.fromkeys(dims, 0)
    for dim, shift in zip(dims, shifts, strict=True):
        found[dim] += shift
    return found


def _roll(call: Call) -> str:
    """A tensor that is rolled as one row is whole, if it has other dims."""
    rank = len(call.shapes[0])
    if not call.integers("dims") and rank != 1:
        dims = with_whole(names(rank), range(rank))
        return arrow([dims], [dims])
    return tied(call, _rolled(call))


def _lower_roll(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    x, shape = call.operand("self"), call.shapes[0]
    for dim, shift in _rolled(call).items():
        size = shape[dim]
        start = -shift % size
        x = emit_reads(emit, x, dim, size, [range(start, size), range(start)])
    return x


def _flipped(call: Call) -> list[int]:
    rank = len(call.shapes[0])
    whole = {aten.fliplr.default: 1, aten.flipud.default: 0}.get(call.overload)
    return [whole] if whole is not None else [d % rank for d in call.integers("dims") if rank]


def _lower_flip(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    x = call.operand("self")
    for dim in _flipped(call):
        size = call.shapes[0][dim]
        x = emit_reads(emit, x, dim, size, [range(size - 1, -1, -1)])
    return x


rule(aten.roll.default, spec=_roll, linear=["self"], lower=_lower_roll)
rule(
    aten.flip.default, aten.fliplr.default, aten.flipud.default,
    spec=lambda call: tied(call, _flipped(call)), linear=["self"], lower=_lower_flip,
)  # fmt: skip


def _rot90(call: Call) -> str:
    rank = len(call.shapes[0])
    one, two = (d % rank for d in call.integers("dims"))
    before = with_whole(names(rank), {one, two})
    after = list(before)
    if call.integer("k") % 2:
        after[one], after[two] = after[two], after[one]
    return arrow([before], [after])


rule(aten.rot90.default, spec=_rot90, linear=["self"])


def _amounts(call: Call, name: str) -> dict[int, tuple[int, int]]:
    """By dim, what a pad list (last dim first) puts before and after it; less than 0 cuts."""
    rank, pad = len(call.shapes[0]), call.integers(name)
    pairs = {rank - 1 - i // 2: (pad[i], pad[i + 1]) for i in range(0, len(pad), 2)}
    return {dim: pair for dim, pair in pairs.items() if any(pair)}


def _mode(call: Call) -> str:
    return call.text("mode") if "mode" in call.names else "constant"


def _is_constant(call: Call) -> bool:
    return _mode(call) == "constant"


def _around(size: int, before: int, after: int, mode: str) -> list[Stretch]:
    """What a padded dim reads, in the mode of `torch.nn.functional.pad`."""
    inside = range(max(-before, 0), size - max(-after, 0))
    before, after = max(before, 0), max(after, 0)
    if mode == "constant":
        return [before, inside, after]
    if mode == "circular":
        return [inside[len(inside) - before :], inside, inside[:after]]
    if mode == "reflect":
        return [range(before, 0, -1), inside, range(size - 2, size - 2 - after, -1)]
    assert mode == "replicate", f"there is no padding `{mode}`"
    return [*[range(1)] * before, inside, *[range(size - 1, size)] * after]


def _lower_pad(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Split dims read their neighbours; so do whole ones, but where a constant is put around."""
    pad, x, shape = call.integers("pad"), call.operand("self"), call.shapes[0]
    mode = _mode(call)
    fill = 0.0 if mode != "constant" or call["value"] is None else call.scalar("value")
    amounts = _amounts(call, "pad")
    split = [dim for dim in amounts if sharding.factors[f"x{dim}"].axes or mode != "constant"]
    for dim in split:
        place = 2 * (len(shape) - 1 - dim)
        pad[place : place + 2] = [0, 0]
    if any(pad):
        x = emit(aten.constant_pad_nd.default, x, pad, fill)
    for dim in split:
        x = emit_reads(emit, x, dim, shape[dim], _around(shape[dim], *amounts[dim], mode), fill)
    return x


def _pad_keeps(call: Call) -> str:
    """What is put around the operand is a constant, or is taken from it."""
    return "" if _is_constant(call) else "self"


def _pad_linear(call: Call) -> list[str]:
    """Every padding but that with another constant than 0 is linear."""
    return [] if _is_constant(call) and call["value"] else ["self"]


rule(
    aten.constant_pad_nd.default, aten.pad.default, kind=OpKind.PAD,
    spec=lambda call: tied(call, _amounts(call, "pad")), linear=_pad_linear, lower=_lower_pad,
    keeps=_pad_keeps,
)  # fmt: skip


def _lower_edges(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Reflection and replication."""
    mode = "reflect" if "reflection" in str(call.target) else "replicate"
    x, shape = call.operand("self"), call.shapes[0]
    for dim, pair in _amounts(call, "padding").items():
        x = emit_reads(emit, x, dim, shape[dim], _around(shape[dim], *pair, mode))
    return x


rule(
    aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default,
    aten.replication_pad1d.default, aten.replication_pad2d.default,
    aten.replication_pad3d.default,
    spec=lambda call: tied(call, _amounts(call, "padding")), linear=["self"], lower=_lower_edges,
    keeps="self",
)  # fmt: skip
