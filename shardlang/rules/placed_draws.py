"""Draws in place into a tensor that is not contiguous, as ops that write nothing.

`bernoulli_` and `normal_` draw in the order of their operand's memory, and `normal_` by another
method where it has gaps. Their counterparts in ATen draw for contiguous tensors. The ops here make
a tensor with the steps of the operand and draw into that, under `random fast` too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shardlang.ir.compat import OpOverload
from shardlang.ir.device_values import size_at
from shardlang.ir.layout import Layout
from shardlang.ir.own_ops import define, implement
from shardlang.ir.rule import Sharding
from shardlang.rules import local
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.local_shape import place
from shardlang.rules.registry import rule


def _define(name: str, arguments: str, run: Callable[..., Tensor]) -> OpOverload:
    """Define a random op that takes one tensor, and no gradient."""
    define(f"{name}({arguments}) -> Tensor", draws=True)
    return implement(name, run, run)


def _flips(like: Tensor, steps: Sequence[int], p: float) -> Tensor:
    return like.new_empty_strided(like.shape, steps).bernoulli_(p)


def _normal(like: Tensor, steps: Sequence[int], mean: float, std: float) -> Tensor:
    return like.new_empty_strided(like.shape, steps).normal_(mean, std)


def _flips_by(p: Tensor, steps: Sequence[int], dtype: torch.dtype) -> Tensor:
    return p.new_empty_strided(p.shape, steps, dtype=dtype).bernoulli_(p)


placed_flips: OpOverload = _define("placed_flips", "Tensor like, SymInt[] steps, float p", _flips)
placed_normal = _define(
    "placed_normal", "Tensor like, SymInt[] steps, float mean, float std", _normal
)
placed_flips_by = _define(
    "placed_flips_by", "Tensor p, SymInt[] steps, ScalarType dtype", _flips_by
)


def _places(layout: Layout) -> list[object]:
    return [place(dim) for dim in layout.dims]


def _draw(call: Call, sharding: Sharding) -> LocalCall:
    layout = sharding.result()
    if not layout.sharded:
        return call.replace()
    op, (x, *rest), _ = call.replace()
    return local.drawn_like, (x, op, _places(layout), layout.shape, call["steps"], *rest), {}


def _draw_by(call: Call, sharding: Sharding) -> LocalCall:
    layout = sharding.result()
    if not layout.sharded:
        return call.replace()
    op, given, _ = call.replace()
    at, none = _places(layout), [()] * (len(given) - 1)
    sizes = [size_at(dim) for dim in layout.dims]
    return local.drawn_by, (given, op, [layout.shape, *none], [at, *none], at, sizes), {}


rule(
    placed_flips, placed_normal, spec="d... -> d...", localize=_draw, random=True, detached=True,
)  # fmt: skip
rule(placed_flips_by, spec="d... -> d...", localize=_draw_by, random=True, detached=True)
