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
        ([1, 1, 4, 1, 1, 40, 3, 120], [[0, 1, 3, 4, 6], [2], [5], [7]]),
        ([3] * 60, [list(range(8)), list(range(8, 16)), list(range(16, 24))]),
        ([0.4, 0.4, 0.9, 1, 0.4], [[0, 1], [2], [3], [4]]),
    ],
)
def test_large_gradients_go_alone_and_others_together(
    sizes: list[float], calls: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes in MiB, of which a bucket holds 25 or a sixth of all, and a large one is an eighth."""
    graph = fx.Graph()
    of = {graph.placeholder(f"p{i}"): int(size * MIB) for i, size in enumerate(sizes)}
    monkeypatch.setattr(fuse_collectives, "value_bytes", of.__getitem__)
    nodes = list(of)
    made = [[nodes.index(n) for n in one] for one in FuseCollectives().buckets(nodes) if one]
    assert sorted(made)[: len(calls)] == calls
