"""Which inputs are found to hold numbers that an op of the model does not take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shardlang
from shardlang.api import CompileError
from shardlang.capture import CallableSource, CaptureError, InputSpec, capture
from shardlang.capture.index_bounds import check_values
from shardlang.runtime.errors import RunError


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


VALUES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[int]]] = {
    **{name: (op, [0, last - 1, last, -1]) for name, (op, last) in OPS.items()},
    "index put": (lambda table, ids: table[:6].index_put((ids,), table[0]), [-6, 5, 6, -7]),
    "scatter": (lambda table, ids: table[:6].scatter(1, ids[:, None], 0.0), [0, 6, 7, -1]),
    "shifted": (lambda table, ids: F.embedding(ids[:2], table), [0, 10, -1]),
    "ignored": (lambda t, ids: F.cross_entropy(t[:6], ids, ignore_index=255), [0, 6, 7, 255, -100]),
    "not ignored": (lambda table, ids: F.cross_entropy(table[:6], ids), [-100, -1]),
    "wraps": (lambda table, ids: table[ids], [-10, -11, 9, 10]),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_refused_where_the_op_refuses_it(name: str) -> None:
    """A number at the fourth place, which "shifted" does not read, against the plain model."""
    op, numbers = VALUES[name]
    captured = capture(CallableSource(lambda: Op(op)), [InputSpec("ids", torch.int64, (6,), 3)])
    for number in numbers:
        ids = torch.tensor([0, 1, 2, number, 1, 0])
        try:
            Op(op)(ids)
            check_values(captured, {"ids": ids})
        except (IndexError, RuntimeError):
            with pytest.raises(CaptureError, match=rf"^`ids` holds {number} at \[3\], and `"):
                check_values(captured, {"ids": ids})


class Words(nn.Module):
    """A language model whose vocabulary a spec may split."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(13, 6), nn.Linear(6, 13)

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Shapes `b s`."""
        logits = self.head(self.table(ids))[:, :-1].flatten(0, 1)
        return {"loss": F.cross_entropy(logits, labels[:, 1:].flatten())}


SPLIT = """mesh { tp = TP }
model "m.py:build"
input ids, labels : i64[2, 4] [_, _]
param "table.weight" [tp, _]
param "head.weight" [tp, _]
"""
MODEL = """import torch
from tests.capture.test_index_bounds import Words
def build():
    ids = torch.tensor([[0, 12, 1, 13], [2, 3, 4, 5]])
    return Words(), iter([{"ids": ids, "labels": torch.zeros(2, 4).long()}])
"""


def test_a_split_vocabulary_does_not_hide_a_wrong_number(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(MODEL)
    spec = tmp_path / "a.shard"
    spec.write_text(SPLIT.replace("TP", "2"))
    with pytest.raises(CompileError, match=r"`ids` holds 13 at .*takes numbers from 0 to 12"):
        shardlang.compile(spec).verify()
    spec.write_text(SPLIT.replace("TP", "1"))
    module = shardlang.compile(spec).load()
    ids, labels = torch.zeros(2, 4).long(), torch.tensor([[99, 12, -100, 0]] * 2)
    module(**module.shard_inputs(ids=ids, labels=labels))
    for name, value in (("ids", ids - 1), ("labels", labels.clone().fill_(13))):
        with pytest.raises(RunError, match=rf"^`{name}` holds .* at \[0, 0\]") as caught:
            module.shard_inputs(**{"ids": ids, "labels": labels, name: value})
        assert caught.value.code == "SH0614"
    short = labels[:1, :2].expand(3, 2)
    with pytest.raises(RunError, match=r"`ids` holds 13 at \[2, 1\]"):
        module.shard_inputs(ids=torch.tensor([[0, 1], [2, 3], [4, 13]]), labels=short)


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
