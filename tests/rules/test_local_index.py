"""Local functions of indexing, of reads and of windows compile without graph breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shardlang.rules import local_index, local_reads, local_shape, local_window

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([1, 5, 7])
HERE = (4, 4, 8)
GAPS = ([0, 2, 5, 7], 4, 8)

CALLS: list[tuple[str, Callable[[Tensor], Any]]] = [
    ("select", lambda x: local_shape.select_here(x, 0, 5, 4)),
    ("select elsewhere", lambda x: local_shape.select_here(x, 0, 1, 4)),
    ("triangle", lambda x: local_shape.triangle_here(
        torch.ops.aten.tril.default, x, 0, 4, [0, 4, 5])),
    ("index", lambda x: local_index.index_here(x, [IDS], [HERE])),
    ("index with gaps", lambda x: local_index.index_here(x, [IDS], [GAPS])),
    ("gather", lambda x: local_index.gather_here(x, 0, IDS[None], HERE)),
    ("index_add", lambda x: local_index.write_here(
        torch.ops.aten.index_add.default, x, 0, IDS, HERE, x[:3])),
    ("index_put", lambda x: local_index.index_put_here(x, [IDS], [HERE], x[:3], True)),
    ("reads", lambda x: local_reads.read_here(x, 0, [[3, 0, -2], [2], [1, 4, 1]], 0.5)),
    ("patches", lambda x: local_window.patches(
        x[None, None], [2, 2], [1, 1], [0, 0], [1, 1], 2, 2)),
]  # fmt: skip


@pytest.mark.parametrize("call", [c for _, c in CALLS], ids=[name for name, _ in CALLS])
def test_no_graph_breaks(call: Callable[[Tensor], Any]) -> None:
    x = X.clone().requires_grad_()
    torch._dynamo.reset()
    made = torch.compile(call, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(made, call(x))
