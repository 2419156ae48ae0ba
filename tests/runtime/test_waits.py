"""What a rank waits for is measured at the waits, by a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shardlang.ir.mesh import Axis
from shardlang.runtime import waits
from shardlang.runtime.communication import Call
from shardlang.runtime.groups import Connection, Group
from shardlang.runtime.transport import Wire
from shardlang.runtime.waits import Waits


class Clock:
    """A call that is waited for takes 5 seconds, and all that is started 1 second."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def wait(self) -> None:
        self.now += 5


class Calls:
    """A process group whose calls move the clock."""

    group_name = "clock"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def _allgather_base(self, out: Tensor, x: Tensor, options: Any) -> Clock:
        self.clock.now += 1
        return self.clock


def made(wire: Wire, x: Tensor) -> None:
    wire.make(Call("all_gather"), x)


def gathered(wire: Wire, x: Tensor) -> None:
    wire.all_gather(x)


def started(wire: Wire, x: Tensor) -> None:
    wire.start(Call("all_gather"), x).wait()


@pytest.mark.parametrize(("call", "seconds"), [(made, 6.0), (gathered, 6.0), (started, 5.0)])
def test_a_wait_counts_from_where_the_rank_is_held(
    call: Callable[[Wire, Tensor], None], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is started before counts from its wait on; nothing counts outside a step."""
    clock = Clock()
    monkeypatch.setattr(waits, "time", clock)
    coords = tuple({"tp": i} for i in range(3))
    group = Group((Axis("tp", 3),), coords, 0, (0, 1, 2), "gloo", Connection(Calls(clock)))
    wire, x = Wire(group), torch.zeros(2)
    call(wire, x)
    assert waits.WAITS.taken_s() == 0
    with waits.WAITS.measured(on_gpu=False):
        call(wire, x)
        call(wire, x)
    call(wire, x)
    assert waits.WAITS.taken_s() == 2 * seconds
    assert waits.WAITS.taken_s() == 0


class Event:
    """An event of a GPU: at a time on its stream, which it may not have come to."""

    done = 0

    def __init__(self, at: float) -> None:
        self.at = at

    def query(self) -> bool:
        return self.at <= Event.done

    def elapsed_time(self, other: Event) -> float:
        return 1000 * (other.at - self.at)


def test_what_a_gpu_has_not_come_to_counts_in_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([1.0, 3.0, 4.0, 9.0])
    monkeypatch.setattr(waits, "_event", lambda: Event(next(times)))
    found = Waits()
    with found.measured(on_gpu=True):
        found.end(found.begin())
        found.end(found.begin())
    Event.done = 5
    assert found.taken_s() == 2
    Event.done = 9
    assert found.taken_s() == 5
