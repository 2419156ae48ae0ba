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


class Pair(Twin):
    """Two members over gloo: the other one sends ten times what it is sent."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def allreduce(self, xs: list[Tensor], options: Any) -> Work | None:
        self.calls.append("allreduce")
        return Work(lambda: xs[0].mul_(11))

    def alltoall_base(self, out: Tensor, x: Tensor, *rest: Any) -> Work | None:
        self.calls.append("alltoall")
        assert rest[:2] == ([0, out.numel()], [0, x.numel()])
        return Work(lambda: out.copy_(10 * x))


def test_two_members_over_gloo_exchange_what_is_not_their_own() -> None:
    coords, pair = ({"tp": 0}, {"tp": 1}), Pair()
    wire = Wire(Group((Axis("tp", 2),), coords, 0, (0, 1), "gloo", Connection(pair)))
    x = torch.tensor([1.0, -2.0, 3.0, 5.0])

    def made(call: Call) -> list[float]:
        found: list[float] = wire.start(call, x).wait().tolist()
        return found

    assert made(Call("all_reduce", ReduceOp.SUM)) == [11, -22, 33, 55]
    assert made(Call("all_reduce", ReduceOp.SUM, spare=True)) == [11, -22, 33, 55]
    assert made(Call("all_gather")) == [1, -2, 3, 5, 10, -20, 30, 50]
    assert made(Call("reduce_scatter")) == [1 + 30, -2 + 50]
    assert x.tolist() == [1, -2, 3, 5] and set(pair.calls) == {"alltoall"}


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_a_large_tensor_that_is_spare_becomes_the_sum(backend: str) -> None:
    """And one that is not, or lies in another order, stays as it is."""
    coords, pair = ({"tp": 0}, {"tp": 1}), Pair()
    wire = Wire(Group((Axis("tp", 2),), coords, 0, (0, 1), backend, Connection(pair)))
    x = torch.arange(1 << 19, dtype=torch.float32).view(512, 1024)
    kept, spare = Call("all_reduce"), Call("all_reduce", spare=True)
    for call, given in ((kept, x), (kept, x.t()), (spare, x.t())):
        made = wire.start(call, given).wait()
        assert torch.equal(made, 11 * given) and x[-1, -1] == x.numel() - 1
    made = wire.start(spare, x).wait()
    assert made.data_ptr() == x.data_ptr() and x[-1, -1] == 11 * (x.numel() - 1)
    assert pair.calls[-1] == "allreduce"


def test_complex_numbers_are_scattered_as_pairs() -> None:
    x = torch.tensor([1 + 2j, -3j, 4.0, 5 - 1j])
    assert wire_of_twins().start(Call("reduce_scatter"), x).wait().tolist() == [11 + 22j, -33j]
