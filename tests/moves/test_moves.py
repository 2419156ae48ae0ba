"""Drawn moves of every kind against their meaning on whole tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from spawn import spawn

from shardlang.ir.collective import ReduceOp
from shardlang.ir.dim_layout import DimLayout
from shardlang.ir.layout import Layout
from shardlang.ir.mesh import Axis, Mesh
from shardlang.ir.reshard import Reshard
from shardlang.ir.shards import shard_of
from shardlang.runtime import lower, moves, parts
from shardlang.runtime.communication import Call
from shardlang.runtime.communicator import CallFault, Communicator
from shardlang.runtime.lockstep import lowered, move_all
from tests.moves.cases import ALL_KINDS, case
from tests.moves.check import differences

EACH = 40
"""Cases of every kind in the suite; `python -m tests.moves` tries thousands."""

A = Axis("a", 2)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_move_does_what_it_means(kind: str) -> None:
    numbers = range(ALL_KINDS.index(kind), EACH * len(ALL_KINDS), len(ALL_KINDS))
    assert [line for number in numbers for line in differences(case(number))] == []


def test_on_real_process_groups_too(tmp_path: Path) -> None:
    for tried, wrong in spawn("tests.moves.on_ranks:sample", 4, tmp_path, 240):
        assert tried >= 300
        assert wrong == []


def between_other_blocks(src: Any, dst: Any) -> tuple[Axis, ...]:
    """The axes that differ in order, as if blocks did not matter."""
    same = 0
    while same < min(len(src.axes), len(dst.axes)) and src.axes[same] == dst.axes[same]:
        same += 1
    return tuple(src.axes[same:] + dst.axes[same:])


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "axes by their order alone": (lower, "moved_axes", between_other_blocks),
    "shards joined in the members' order": (
        parts.Parts, "join", lambda self, found: torch.cat(list(found), self.dim)
    ),
    "no padding": (moves, "_grown", lambda x, dim, missing: x),
    "messages that start at the wrong member": (
        moves.Exchange, "split", lambda self, x: [*self.sent.split(x)][::-1]
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_run_s_own_code_is_found(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*FAULTS[fault])
    lowered.cache_clear()
    found = any(differences(case(number)) for number in range(EACH * len(ALL_KINDS)))
    lowered.cache_clear()
    assert found


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        (DimLayout.shard(12, (A,)), DimLayout.shard(12, (A,), 3)),
        (DimLayout.shard(12, (A,), 3), DimLayout.shard(12, (A,))),
        (DimLayout.shard(7, (A,)), DimLayout.shard(7, (A,), (5, 2))),
    ],
    ids=str,
)
def test_the_same_axes_in_other_blocks(src: DimLayout, dst: DimLayout) -> None:
    mesh, full = Mesh((A,)), torch.arange(float(src.size))
    before, after = Layout((src,)), Layout((dst,))
    xs = [shard_of(full, before, at) for at in mesh.coords()]
    ys = move_all(lowered(Reshard((A,), before, after).forward, mesh), xs)
    for y, at in zip(ys, mesh.coords(), strict=True):
        assert torch.equal(y, shard_of(full, after, at))


def counted(sent: list[int], received: list[int]) -> Call:
    """An exchange with counts."""
    return Call("exchange", sent=sent, received=received)


X = torch.zeros(4)
UNFIT = {
    "another kind": ([Call("all_gather"), Call("all_reduce")], [X, X]),
    "another op": ([Call("all_reduce", ReduceOp.MAX), Call("all_reduce", ReduceOp.SUM)], [X, X]),
    "another dtype": ([Call("all_reduce")] * 2, [X, X.long()]),
    "another size": ([Call("all_gather")] * 2, [X, X[1:]]),
    "no equal shares": ([Call("exchange")] * 2, [X[1:], X[1:]]),
    "unexpected counts": ([counted([1, 3], [1, 2]), counted([1, 3], [3, 3])], [X, X]),
    "counts that do not add up": ([counted([1, 2], [1, 2])] * 2, [X, X]),
    "counts on one side": ([Call("exchange"), counted([2, 2], [2, 2])], [X, X]),
}


@pytest.mark.parametrize("case", UNFIT)
def test_calls_that_do_not_fit_together_are_faults(case: str) -> None:
    with pytest.raises(CallFault):
        Communicator(*UNFIT[case])
