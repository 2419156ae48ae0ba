"""Which inputs are found to hold numbers that an op of the model does not take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shardlang.capture import CallableSource, CaptureError, InputSpec, capture


class Op(nn.Module):
    """A table of 10 rows of 7, and one op that reads the ids."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.op = nn.Parameter(torch.randn(10, 7)), op

    def forward(self, ids: Tensor) -> Tensor:
        return self.op(self.table, ids)


OPS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "embedding": (lambda table, ids: F.embedding(ids, table), 10),
    "after views": (lambda table, ids: F.embedding(ids[1:].view(1, -1).long(), table), 10),
    "cross entropy": (lambda table, ids: F.cross_entropy(table[:6], ids), 7),
    "nll": (lambda table, ids: F.nll_loss(table[:6].log_softmax(-1), ids), 7),
    "gather": (lambda table, ids: table[:6].gather(1, ids.unsqueeze(1)), 7),
    "index": (lambda table, ids: table[ids], 10),
    "index of columns": (lambda table, ids: table[:, ids], 7),
    "index select": (lambda table, ids: table.index_select(0, ids), 10),
}


def traced(op: Callable[[Tensor, Tensor], Tensor], below: int) -> None:
    capture(CallableSource(lambda: Op(op)), [InputSpec("ids", torch.int64, (6,), below)])


@pytest.mark.parametrize("name", OPS)
def test_the_largest_number_is_the_last_one(name: str) -> None:
    op, limit = OPS[name]
    traced(op, limit)
    with pytest.raises(CaptureError, match=rf"up to {limit}, and .* up to {limit - 1}$") as caught:
        traced(op, limit + 1)
    assert (caught.value.code, caught.value.input) == ("SH0312", "ids")
    assert caught.value.help.startswith(f"declare it `below {limit}`")


@pytest.mark.parametrize(
    "op",
    [
        lambda table, ids: F.embedding(ids % 10, table),
        lambda table, ids: F.embedding(ids.clamp(max=9), table),
        lambda table, ids: F.cross_entropy(table[:6], ids, ignore_index=255),
    ],
    ids=["modulo", "clamped", "ignored"],
)
def test_what_is_made_smaller_or_ignored_is_no_fault(
    op: Callable[[Tensor, Tensor], Tensor],
) -> None:
    traced(op, 256)
