"""Rules of products by groups of rows: mixtures of experts.

Rows and columns are split as those of any product. Split groups give zeros in the rows of groups
elsewhere, which leaves a partial sum.
"""

from __future__ import annotations

import torch

from shardlang.ir.rule import Sharding
from shardlang.ir.traits import OpKind
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.experts.local_grouped import grouped_mm_here
from shardlang.rules.local_shape import place
from shardlang.rules.registry import rule


def _local(call: Call, sharding: Sharding) -> LocalCall:
    """With the groups split, a device multiplies the rows of its own."""
    groups = sharding.factors["e"]
    if not groups.axes:
        return call.replace()
    return grouped_mm_here, (*call.operands, place(groups), groups.size), {}


rule(
    torch.ops.shardlang.grouped_mm.default, kind=OpKind.GROUPED_PRODUCT, flops=["x result"],
    spec="s i, e i o, s -> s o", linear=["x", "weight"], passes=False,
    localize=_local, picks="e groups",
)  # fmt: skip
rule(
    torch.ops.shardlang.grouped_outer.default,
    spec="s i, s o, s -> e! i o", linear=["x", "y"], passes=False, flops=["x y"],
)  # fmt: skip
