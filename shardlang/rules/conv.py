"""Rules of convolutions: the batch and the output channels are outer, the input channels inner.

With groups the channels are `(g c)` and `(g o)`, and whole groups may be split too.
"""

from __future__ import annotations

import torch

from shardlang.ir.here import size_at
from shardlang.ir.rule import Sharding
from shardlang.rules.call import Call, LocalCall
from shardlang.rules.registry import rule
from shardlang.rules.writing import group, names, tensor

aten = torch.ops.aten


def spatial_rank(call: Call) -> int:
    """Number of spatial dims."""
    return call.rank("weight") - 2


def _transposed(call: Call) -> bool:
    return bool(call.get("transposed", "transpose" in str(call.target)))


def _grouped(call: Call, channel: str) -> str:
    groups = [f"g={call['groups']}"] if call["groups"] != 1 else []
    return group([*groups, channel])


def _conv(call: Call) -> str:
    spatial = spatial_rank(call)
    batch = ["n"] if call.rank("input") == spatial + 2 else []
    before = [f"{name}!" for name in names(spatial, "x")]
    after = [f"{name}!" for name in names(spatial, "y")]
    kernel = [f"{name}!" for name in names(spatial, "k")]
    inner, outer = _grouped(call, "c"), _grouped(call, "o")
    weight = [inner, "o", *kernel] if _transposed(call) else [outer, "c", *kernel]
    operands = [tensor([*batch, inner, *before]), tensor(weight)]
    if call.has("bias"):
        operands.append(f"+{outer}")
    return f"{', '.join(operands)} -> {tensor([*batch, outer, *after])}"


def _local_conv(call: Call, sharding: Sharding) -> LocalCall:
    if "g" not in sharding.factors:
        return call.replace()
    return call.replace(groups=size_at(sharding.factors["g"]))


rule(
    aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding,
    aten.conv3d.default, aten.conv3d.padding, aten.convolution.default,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    spec=_conv, linear=["input bias", "weight bias"], localize=_local_conv, passes=False,
)  # fmt: skip
rule(
    aten.conv_tbc.default,
    spec="t! n c, k! c o, +o -> s! n o", linear=["self bias", "weight bias"], passes=False,
)  # fmt: skip
