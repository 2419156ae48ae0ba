"""Rules of ops that move elements along dims: roll, flip, rot90 and padding.

The dims that they move along stay whole.
"""

from __future__ import annotations

import torch

from shardlang.rules.call import Call
from shardlang.rules.registry import rule
from shardlang.rules.writing import arrow, names, with_whole

aten = torch.ops.aten


def _keeping(call: Call, places: set[int]) -> str:
    """Operand and result of one shape, some dims whole."""
    dims = with_whole(names(len(call.shapes[0])), places)
    return arrow([dims], [dims])


def _roll(call: Call) -> str:
    rank = len(call.shapes[0])
    return _keeping(call, {int(d) % rank for d in call["dims"]} or set(range(rank)))


def _flip(call: Call) -> str:
    rank = len(call.shapes[0])
    return _keeping(call, {int(d) % rank for d in call["dims"]} if rank else set())


rule(aten.roll.default, spec=_roll, linear=["self"])
rule(aten.flip.default, spec=_flip, linear=["self"])
rule(aten.fliplr.default, spec=lambda call: _keeping(call, {1}), linear=["self"])
rule(aten.flipud.default, spec=lambda call: _keeping(call, {0}), linear=["self"])


def _rot90(call: Call) -> str:
    rank = len(call.shapes[0])
    one, two = (int(d) % rank for d in call["dims"])
    before = with_whole(names(rank), {one, two})
    after = list(before)
    if call["k"] % 2:
        after[one], after[two] = after[two], after[one]
    return arrow([before], [after])


rule(aten.rot90.default, spec=_rot90, linear=["self"])


def padded(call: Call) -> set[int]:
    """Dims that a pad list (last dim first, before and after) makes longer or shorter."""
    rank, pad = len(call.shapes[0]), call["pad"]
    return {rank - 1 - i // 2 for i, amount in enumerate(pad) if amount}


def _pad(call: Call) -> str:
    chosen = padded(call)
    before = names(len(call.shapes[0]))
    after = [f"p{i}!" if i in chosen else dim for i, dim in enumerate(before)]
    return arrow([with_whole(before, chosen)], [after])


def _pad_linear(call: Call) -> list[str]:
    """Every padding but that with another constant than 0 is linear."""
    constant = call.get("mode", "constant") == "constant"
    return [] if constant and call["value"] else ["self"]


rule(aten.constant_pad_nd.default, aten.pad.default, spec=_pad, linear=_pad_linear)


def _pad_edges(call: Call) -> str:
    """Reflection and replication: a list as long as the op's dims, all of them taken as padded."""
    chosen = {len(call.shapes[0]) - 1 - i for i in range(len(call["padding"]) // 2)}
    before = names(len(call.shapes[0]))
    after = [f"p{i}!" if i in chosen else dim for i, dim in enumerate(before)]
    return arrow([with_whole(before, chosen)], [after])


rule(
    aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default,
    aten.replication_pad1d.default, aten.replication_pad2d.default,
    aten.replication_pad3d.default,
    spec=_pad_edges, linear=["self"],
)  # fmt: skip
