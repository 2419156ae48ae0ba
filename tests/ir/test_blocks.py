"""The blocks of a model are its repeated layers."""

from __future__ import annotations

import pytest
import torch

from shardlang.ir.blocks import blocks_of
from shardlang.ir.layout import Layout
from shardlang.ir.leaf import Leaf, LeafKind

MODELS: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, str]]] = {
    "layers": (
        {"embed.weight": (7, 4), "layers.0.up.weight": (6, 4), "layers.1.up.weight": (6, 4)},
        {"layers.0.up.weight": "layers.0", "layers.1.up.weight": "layers.1"},
    ),
    "weights of their own": (
        {"0.w_in": (4, 6), "0.w_out": (6, 4), "1.w_in": (4, 6), "1.w_out": (6, 4)},
        {"0.w_in": "0", "0.w_out": "0", "1.w_in": "1", "1.w_out": "1"},
    ),
    "linears": (
        {f"net.{i}.{name}": (4, 4) for i in (0, 2, 4) for name in ("weight", "bias")},
        {},
    ),
    "one layer": ({"layers.0.up.weight": (6, 4), "layers.0.down.weight": (4, 6)}, {}),
    "a first layer unlike the others": (
        {"l.0.dense.weight": (9, 4), "l.1.up.weight": (6, 4), "l.2.up.weight": (6, 4)},
        {"l.0.dense.weight": "l.0", "l.1.up.weight": "l.1", "l.2.up.weight": "l.2"},
    ),
    "parts unlike each other, with layers in one": (
        {"0.weight": (7, 4), "1.0.up.weight": (6, 4), "1.1.up.weight": (6, 4), "2.weight": (7, 4)},
        {"1.0.up.weight": "1.0", "1.1.up.weight": "1.1"},
    ),
    "experts within layers": (
        {f"layers.{i}.experts.{e}.up.weight": (6, 4) for i in range(2) for e in range(2)},
        {f"layers.{i}.experts.{e}.up.weight": f"layers.{i}" for i in range(2) for e in range(2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_blocks(name: str) -> None:
    shapes, blocks = MODELS[name]
    leaves = [
        Leaf(leaf, LeafKind.PARAM, leaf, torch.float32, Layout.whole(shape))
        for leaf, shape in shapes.items()
    ]
    assert blocks_of(leaves) == blocks
