"""The bytes of a layout against the shards of all devices."""

from __future__ import annotations

import random

import torch

from shardlang.cost.held import local_bytes, whole_bytes
from shardlang.ir.shards import shard_of
from tests.moves import draw


def test_a_layout_takes_the_bytes_of_its_largest_shard() -> None:
    """Drawn layouts, uneven and packed ones among them; the first device has the largest."""
    for number in range(200):
        rng = random.Random(number)
        mesh = draw.mesh_of(rng)
        layout = draw.reshard_of(rng, mesh, rng.choice(draw.KINDS)).src
        full = torch.zeros(layout.shape, dtype=rng.choice([torch.float32, torch.int8]))
        held = [shard_of(full, layout, at) for at in mesh.coords()]
        sizes = [shard.numel() * shard.element_size() for shard in held]
        assert local_bytes(layout, full.dtype) == sizes[0] == max(sizes), layout


def test_whole_tensors() -> None:
    assert whole_bytes([torch.zeros(3, 5), torch.zeros(2, dtype=torch.int64)]) == 60 + 16
