"""The bubble of every schedule on gloo, with stages whose work is a sleep, beside the prediction.

The run is that of `program.step`: its actions, its links, its order. Around each action stands a
clock that sleeps first, one part for a forward, the gradients of the inputs or those of the
weights, and two for a whole backward. From the first begin to the last end, on all ranks, is T, and

    bubble = ranks T / (time asleep) - 1,

as `Timeline.bubble` predicts it; for GPipe and 1F1B that is (p - 1) / m.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import shardlang
from shardlang.compiler.pipelined import SCHEDULES, schedule_of
from shardlang.cost.timeline import alike, timeline
from shardlang.ir.pipeline.action import Action
from shardlang.ir.pipeline.schedule import ScheduleError
from shardlang.runtime.stages.clock import ActionClock

ROUNDS = 3


class Chain(nn.Module):
    """As many layers as the longest pipeline has stages."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Shape `b h`."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return {"loss": x.square().mean()}


class Asleep(ActionClock):
    """Sleeps in every action, and notes when it begins and ends by a clock that all ranks share."""

    def __init__(self, part_s: float) -> None:
        super().__init__(torch.device("cpu"))
        self.part_s = part_s
        self.begins: list[float] = []
        self.ends: list[float] = []
        self.asleep = 0.0

    @contextmanager
    def __call__(self, action: Action) -> Iterator[None]:
        """Around one action."""
        self.begins.append(time.monotonic())
        time.sleep(self.part_s * alike(action))
        self.asleep += self.part_s * alike(action)
        yield
        self.ends.append(time.monotonic())


def spec_of(ranks: int, schedule: str, count: int) -> Path:
    """The file of a spec."""
    path = Path(tempfile.mkdtemp()) / "chain.shard"
    name = f"{schedule}(virtual = 2)" if schedule.startswith("inter") else schedule
    path.write_text(
        f"mesh {{ pp = {ranks} }}\ninput x : f32[{count}, 4] [_, _]\n"
        f'pipeline pp {{ split "layers" schedule {name} microbatches {count} }}\n'
        "optimizer sgd(lr = 0.01)\n"
    )
    return path


def measured(program: shardlang.Program, count: int, part_s: float) -> float:
    """The least bubble of some steps."""
    program.load()
    torch.manual_seed(0)
    batch, found = {"x": torch.randn(count, 4)}, []
    trainee: Any = program._loaded()._trainee
    program.step(batch)
    for _ in range(ROUNDS):
        dist.barrier()
        clock = trainee.clock = Asleep(part_s)
        program.step(batch)
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, (clock.begins[0], clock.ends[-1], clock.asleep))
        began, ended, asleep = zip(*every, strict=True)
        found.append(len(every) * (max(ended) - min(began)) / sum(asleep) - 1)
    return min(found)


def work(
    rank: int, ranks: int, port: int, names: list[str], counts: list[int], part_s: float
) -> None:
    """One process: each schedule with each number of microbatches."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    for name in names:
        for count in counts:
            if not _fits(name, ranks, count):
                continue
            program = shardlang.compile(spec_of(ranks, name, count), model=Chain)
            wanted = timeline(schedule_of(program.spec), alike).bubble
            found = measured(program, count, part_s)
            if rank == 0:
                busy = (1 + found) / (1 + wanted) - 1
                row = f"{name:<17} p {ranks}  m {count:>2}  measured {found:6.1%}"
                print(f"{row}  predicted {wanted:6.1%}  time {busy:+.1%}", flush=True)


def _fits(name: str, ranks: int, count: int) -> bool:
    """Whether there is such a schedule: some need more microbatches."""
    try:
        SCHEDULES[name](ranks, count, 2)
    except ScheduleError:
        return False
    return True


def main() -> None:
    """Print a row for every schedule, depth and number of microbatches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--microbatches", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--part", type=float, default=0.05, help="seconds of sleep for one part")
    parser.add_argument("--schedules", nargs="+", choices=list(SCHEDULES), default=list(SCHEDULES))
    given = parser.parse_args()
    for ranks in given.ranks:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        asked = (given.schedules, given.microbatches, given.part)
        mp.spawn(work, (ranks, port, *asked), nprocs=ranks)


if __name__ == "__main__":
    main()
