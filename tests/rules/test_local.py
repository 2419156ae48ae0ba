"""Local functions do a device's part, and compile without graph breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shardlang.rules import dropout, local

aten: Any = torch.ops.aten
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[1, 5, 7], [0, 2, 3]])
WHOLE = [0, 4]

CALLS: list[tuple[str, Callable[[Tensor], Any]]] = [
    ("lookup", lambda x: local.lookup(x, IDS, -1, 4)),
    ("lookup with gaps", lambda x: local.lookup(x, IDS, 2, [0, 2, 3, 5, 6])),
    ("pick", lambda x: local.pick(x, IDS.view(-1)[:5], 1, 4)),
    ("first_index", lambda x: local.first_index(x, x.amax(1, keepdim=True), [1], [7], [4])),
    ("causal_fill", lambda x: local.causal_fill(x, 2, [0, 1, 4])),
    ("run_totals", lambda x: local.run_totals(x, 1, [0, 4], False, 4)),
    ("run_totals with gaps", lambda x: local.run_totals(x, 1, [0, 1, 2, 5], False, [1, 5, 6])),
    ("scanned", lambda x: local.scanned(x, x[:, :2], 1, [0, 4], True, 4)),
    ("drawn", lambda x: local.drawn(aten.rand.default, [0, [1, 5, 6]], [5, 3], [5, 7])),
    ("dropped", lambda x: dropout.dropped(x, aten.dropout.default, WHOLE, (5, 7), (7, 1), 0.3)),
    (
        "drawn_by",
        lambda x: local.drawn_by(
            [x.sigmoid()], aten.bernoulli.default, [(5, 7)], [WHOLE], WHOLE, [5, 3]
        ),
    ),
]


@pytest.mark.parametrize("call", [c for _, c in CALLS], ids=[name for name, _ in CALLS])
def test_no_graph_breaks(call: Callable[[Tensor], Any]) -> None:
    x = X.clone().requires_grad_()
    torch.manual_seed(1)
    expected = call(x)
    torch.manual_seed(1)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(call, backend="eager", fullgraph=True)(x), expected)


def test_a_lookup_gives_zeros_for_rows_elsewhere() -> None:
    found = local.lookup(X, IDS, at=4)
    assert torch.equal(found[0, 0], torch.zeros(3))
    assert torch.equal(found[0, 1], X[1])
    assert torch.equal(local.lookup(X[:0], IDS, at=8), torch.zeros(2, 3, 3))


def test_the_maximum_of_nothing_is_the_lowest_number() -> None:
    assert local.max_over(X[:, :0], [1]).eq(-torch.inf).all()
    assert local.min_over(X[:, :0].long(), [1]).eq(torch.iinfo(torch.int64).max).all()


def test_the_first_of_equal_elements_is_found() -> None:
    tied = torch.tensor([[1.0, 3.0, 3.0], [torch.nan, 0.0, torch.nan]])
    best = tied.amax(1, keepdim=True)
    found = local.first_index(tied, best, [1], [9], [6])
    assert found.flatten().tolist() == [7, 6]


def test_every_device_draws_the_whole_mask() -> None:
    torch.manual_seed(5)
    whole = aten.dropout(torch.ones(5, 7), 0.3, True)
    torch.manual_seed(5)
    part = dropout.dropped(torch.ones(5, 3), aten.dropout.default, WHOLE, (5, 7), (7, 1), 0.3)
    assert torch.equal(part, whole[:, 4:])
