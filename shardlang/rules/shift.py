"""Rules of ops that move elements along dims: roll, flip, rot90 and padding.

The dims that they move along stay whole, but for padding with a constant.
"""

from __future__ import annotations

import torch
from torch import fx

from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.rules.call import Call
from shardlang.rules.op_rule import Emit
from shardlang.rules.registry import rule
from shardlang.rules.window import Sliding, moved
from shardlang.rules.writing import arrow, names, with_whole

aten = torch.ops.aten


def _keeping(call: Call, places: set[int]) -> str:
    """Operand and result of one shape, some dims whole."""
    dims = with_whole(names(len(call.shapes[0])), places)
    return arrow([dims], [dims])


def _roll(call: Call) -> str:
    rank = len(call.shapes[0])
    return _keeping(call, {d % rank for d in call.integers("dims")} or set(range(rank)))


def _flip(call: Call) -> str:
    rank = len(call.shapes[0])
    return _keeping(call, {d % rank for d in call.integers("dims")} if rank else set())


rule(aten.roll.default, spec=_roll, linear=["self"])
rule(aten.flip.default, spec=_flip, linear=["self"])
rule(aten.fliplr.default, spec=lambda call: _keeping(call, {1}), linear=["self"])
rule(aten.flipud.default, spec=lambda call: _keeping(call, {0}), linear=["self"])


def _rot90(call: Call) -> str:
    rank = len(call.shapes[0])
    one, two = (d % rank for d in call.integers("dims"))
    before = with_whole(names(rank), {one, two})
    after = list(before)
    if call.integer("k") % 2:
        after[one], after[two] = after[two], after[one]
    return arrow([before], [after])


rule(aten.rot90.default, spec=_rot90, linear=["self"])


def padded(call: Call) -> set[int]:
    """Dims that a pad list (last dim first, before and after) makes longer or shorter."""
    rank, pad = len(call.shapes[0]), call.integers("pad")
    return {rank - 1 - i // 2 for i, amount in enumerate(pad) if amount}


def _is_constant(call: Call) -> bool:
    return call.get("mode", "constant") == "constant"


def _pad(call: Call) -> str:
    """Padding with a constant may be split, with an exchange of edges; other paddings are whole."""
    chosen, dims = padded(call), names(len(call.shapes[0]))
    mark, tie = ("~", "@x{}") if _is_constant(call) else ("!", "!")
    before = [f"x{i}{mark}" if i in chosen else dim for i, dim in enumerate(dims)]
    after = [f"y{i}{tie.format(i)}" if i in chosen else dim for i, dim in enumerate(dims)]
    return arrow([before], [after])


def _lower_pad(call: Call, sharding: Sharding, emit: Emit) -> fx.Node:
    """Whole dims are padded as they are, split ones by windows."""
    rank, pad, shape = len(call.shapes[0]), call.integers("pad"), call.shapes[0]
    shifts = [Sliding(d, d, shape[d], 1, pad=pad[2 * (rank - 1 - d)]) for d in padded(call)]
    for one in shifts:
        if one.split_in(sharding):
            place = 2 * (rank - 1 - one.dim)
            pad[place : place + 2] = [0, 0]
    x = call.operand("self")
    fill = 0.0 if call["value"] is None else call.scalar("value")
    if any(pad):
        x = emit(aten.constant_pad_nd.default, x, pad, fill)
    return moved(x, sharding, emit, shifts, fill)


def _pad_keeps(call: Call) -> str:
    """What is put around the operand is a constant, or is taken from it."""
    return "" if _is_constant(call) else "self"


def _pad_linear(call: Call) -> list[str]:
    """Every padding but that with another constant than 0 is linear."""
    return [] if _is_constant(call) and call["value"] else ["self"]


rule(
    aten.constant_pad_nd.default, aten.pad.default, kind=OpKind.PAD,
    spec=_pad, linear=_pad_linear, lower=_lower_pad, keeps=_pad_keeps,
)  # fmt: skip


def _pad_edges(call: Call) -> str:
    """Reflection and replication: a list as long as the op's dims, all of them taken as padded."""
    chosen = {len(call.shapes[0]) - 1 - i for i in range(len(call.sequence("padding")) // 2)}
    before = names(len(call.shapes[0]))
    after = [f"p{i}!" if i in chosen else dim for i, dim in enumerate(before)]
    return arrow([with_whole(before, chosen)], [after])


rule(
    aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default,
    aten.replication_pad1d.default, aten.replication_pad2d.default,
    aten.replication_pad3d.default,
    spec=_pad_edges, linear=["self"],
)  # fmt: skip
