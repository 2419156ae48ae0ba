"""Rules of ops that repeat elements: broadcasting, repeat, tile, repeat_interleave."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shardlang.ir.device_values import size_at
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.registry import rule
from shardlang.rules.view import local_sizes
from shardlang.rules.writing import arrow, group, names

aten = torch.ops.aten


def broadcast(before: Sequence[int], after: Sequence[int]) -> tuple[list[str], list[str]]:
    """Dims of a tensor and of its broadcast; the new dims are factors of the result alone."""
    result = names(len(after))
    skip = len(after) - len(before)
    source = [
        "1" if size == 1 and after[skip + i] != 1 else result[skip + i]
        for i, size in enumerate(before)
    ]
    return source, result


def _expand(call: Call) -> str:
    source, result = broadcast(call.shapes[0], call.out)
    return arrow([source], [result])


def _expand_as(call: Call) -> str:
    source, result = broadcast(call.shapes[0], call.out)
    return arrow([source, result], [result])


def _local_expand(call: Call, sharding: Sharding) -> LocalCall:
    return aten.expand.default, (call.operands[0], local_sizes(sharding)), {}


rule(
    aten.expand.default, aten.expand_copy.default, aten.broadcast_to.default,
    spec=_expand, linear=["self"], localize=_local_expand, moves=True,
)  # fmt: skip
rule(aten.expand_as.default, spec=_expand_as, linear=["self"], localize=_local_expand)


def _broadcast_all(call: Call) -> str:
    pairs = [broadcast(shape, call.out) for shape in call.shapes]
    return arrow([source for source, _ in pairs], [result for _, result in pairs])


rule(aten.broadcast_tensors.default, spec=_broadcast_all, linear=["tensors"], view=True)


def _repeats(call: Call) -> list[int]:
    """How often every dim of the result repeats, whether the op pads the list or not."""
    counts = call.integers("repeats" if "repeats" in call.names else "dims")
    return [1] * (len(call.out) - len(counts)) + counts


def _repeat(call: Call) -> str:
    counts = _repeats(call)
    skip = len(counts) - len(call.shapes[0])
    source = [f"d{i}={size}" for i, size in enumerate(call.shapes[0])]
    result = []
    for i, count in enumerate(counts):
        times = [f"r{i}={count}"] if count != 1 else []
        result.append(group([*times, *([f"d{i - skip}"] if i >= skip else [])]))
    return arrow([source], [result])


def _local_repeat(call: Call, sharding: Sharding) -> LocalCall:
    counts = [
        size_at(sharding.factors[f"r{i}"]) if count != 1 else 1
        for i, count in enumerate(_repeats(call))
    ]
    return aten.repeat.default, (call.operands[0], counts), {}


rule(aten.repeat.default, aten.tile.default, spec=_repeat, linear=["self"], localize=_local_repeat)


def _interleave(call: Call) -> str:
    source = [f"d{i}={size}" for i, size in enumerate(call.shapes[0])]
    times = f"r={call.integer('repeats')}"
    if call["dim"] is None:
        return arrow([source], [[group([*source, times])]])
    at = call.dim()
    result = [group([dim, times]) if i == at else dim for i, dim in enumerate(source)]
    return arrow([source], [result])


def _local_interleave(call: Call, sharding: Sharding) -> LocalCall:
    return call.replace(repeats=size_at(sharding.factors["r"]), output_size=None)


rule(
    aten.repeat_interleave.self_int,
    spec=_interleave, linear=["self"], localize=_local_interleave,
)  # fmt: skip


def _interleave_by(call: Call) -> str:
    """Every index its own number of times: that dim stays whole."""
    dims = names(len(call.shapes[0]))
    if call["dim"] is None:
        source = [f"{dim}!" for dim in dims]
        return arrow([source, ["n!"] if call.shapes[1] else []], [["m!"]])
    at = call.dim()
    counts = ["n!"] if call.shapes[1] else []
    source = [f"{dim}!" if i == at else dim for i, dim in enumerate(dims)]
    return arrow([source, counts], [["m!" if i == at else dim for i, dim in enumerate(dims)]])


rule(aten.repeat_interleave.self_Tensor, spec=_interleave_by, linear=["self"])
