"""Packed dims have one form, however they are put together."""

from __future__ import annotations

import pytest

from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.mesh import Axis
from shardlang.ir.regroup import join_blocks, split_blocks

TP = (Axis("tp", 2),)


@pytest.mark.parametrize("sizes", [(24, 24), (36, 12), (24, 12, 12)])
def test_a_cut_dim_joins_to_itself(sizes: tuple[int, ...]) -> None:
    packed = DimLayout.shard(48, TP, (2, 1, 1))
    parts, dropped = split_blocks(packed, sizes)
    assert not dropped
    assert join_blocks(parts) == packed
    assert str(packed) == "48@tp(2,1,1)"
