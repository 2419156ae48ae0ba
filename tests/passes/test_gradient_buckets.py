"""Which gradients are all-reduced as one call."""

from __future__ import annotations

import pytest
from torch import fx

from shardlang.passes.rewrite import fuse_collectives
from shardlang.passes.rewrite.fuse_collectives import FuseCollectives

MIB = 2**20


@pytest.mark.parametrize(
    ("sizes", "calls"),
    [
        ([1, 1, 7, 1, 1, 40, 1, 120], [[0, 1, 3, 4, 6], [2], [5], [7]]),
        ([6] * 30, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]),
        ([0.4, 0.4, 0.9, 1, 0.4], [[0, 1], [2], [3], [4]]),
    ],
)
def test_large_gradients_go_alone_and_others_together(
    sizes: list[float], calls: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes in MiB, of which a bucket holds 25 or a sixth of all, and a large one is a quarter."""
    graph = fx.Graph()
    of = {graph.placeholder(f"p{i}"): int(size * MIB) for i, size in enumerate(sizes)}
    monkeypatch.setattr(fuse_collectives, "value_bytes", of.__getitem__)
    nodes = list(of)
    made = [[nodes.index(n) for n in one] for one in FuseCollectives().buckets(nodes) if one]
    assert sorted(made)[: len(calls)] == calls
