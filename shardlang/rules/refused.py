"""Ops that cannot be sharded by their nature: the shape of the result depends on the data."""

from __future__ import annotations

import torch

from shardlang.rules.call import Call
from shardlang.rules.notation import Refusal
from shardlang.rules.registry import rule
from shardlang.rules.shapes import whole

aten = torch.ops.aten


def _by_data(call: Call) -> str:
    """
    Raises:
        Refusal: always.
    """
    raise Refusal("the shape of the result depends on the data")


rule(
    aten.nonzero, aten.nonzero_numpy, aten.argwhere, aten.masked_select, aten._unique,
    aten._unique2, aten.unique_consecutive, aten.unique_dim, aten.unique_dim_consecutive,
    aten.bincount, spec=_by_data,
)  # fmt: skip
rule(aten.nonzero_static, spec=whole)
