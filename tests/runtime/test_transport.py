"""Calls as NCCL takes them: on the current stream there is nothing to wait for, and no handle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shardlang.ir.collective import ReduceOp
from shardlang.ir.mesh import Axis
from shardlang.runtime.communication import Call
from shardlang.runtime.groups import Connection, Group
from shardlang.runtime.transport import Wire


class Work:
    """A call that runs beside the current stream: done when it is waited for."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.wait = run


class Twin:
    """A process group whose other member brings what this one brings, ten times."""

    group_name = "twin"

    def _do(self, options: Any, run: Callable[[], object]) -> Work | None:
        if options.asyncOp:
            return Work(run)
        run()
        return None

    def allreduce(self, xs: list[Tensor], options: Any) -> Work | None:
        return self._do(options, lambda: xs[0].mul_(11))

    def _allgather_base(self, out: Tensor, x: Tensor, options: Any) -> Work | None:
        return self._do(options, lambda: out.copy_(torch.cat([x, 10 * x])))

    def _reduce_scatter_base(self, out: Tensor, x: Tensor, options: Any) -> Work | None:
        assert not x.is_complex(), "NCCL has no complex numbers"
        return self._do(options, lambda: out.copy_(11 * x.view(2, -1)[0]))

    def alltoall_base(self, out: Tensor, x: Tensor, *rest: Any) -> Work | None:
        mine = x.view(2, -1)[0]
        return self._do(rest[-1], lambda: out.copy_(torch.cat([mine, 10 * mine])))


def wire_of_twins(aside: bool = False) -> Wire:
    coords = ({"tp": 0}, {"tp": 1})
    return Wire(Group((Axis("tp", 2),), coords, 0, (0, 1), "nccl", Connection(Twin())), aside)


@pytest.mark.parametrize("aside", [False, True])
def test_calls_give_the_same_on_the_current_stream_and_beside_it(aside: bool) -> None:
    wire, x = wire_of_twins(aside), torch.tensor([1.0, -2.0, 3.0, 5.0])

    def made(call: Call) -> list[float]:
        found: list[float] = wire.start(call, x.clone()).wait().tolist()
        return found

    assert made(Call("all_reduce", ReduceOp.SUM)) == [11, -22, 33, 55]
    assert made(Call("all_gather")) == [1, -2, 3, 5, 10, -20, 30, 50]
    assert made(Call("reduce_scatter")) == [11, -22]
    assert made(Call("exchange")) == [1, -2, 10, -20]


def test_complex_numbers_are_scattered_as_pairs() -> None:
    x = torch.tensor([1 + 2j, -3j, 4.0, 5 - 1j])
    assert wire_of_twins().start(Call("reduce_scatter"), x).wait().tolist() == [11 + 22j, -33j]
