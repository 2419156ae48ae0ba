"""How much of the communication of an FSDP step is hidden behind computation, on 2 gloo processes.

One Llama whose parameters are stored over both processes and gathered again for the backward: the
same step program with its collectives started and waited for (`aside`), and as calls in their
places (`in turn`), in rounds that alternate. Of each round

    hidden = (in turn - aside) / communication,

where communication is the time that `in turn` spends in its collectives. With `--sleep S` a product
takes S seconds of sleep per 10^9 multiplications, and nothing is multiplied: as on a device that
computes by itself, and leaves the cores of the host to the transport.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import shardlang
from shardlang.capture import make_inputs
from shardlang.passes.step import write_step as written
from shardlang.passes.step.schedule import schedule
from shardlang.runtime.transport import Arriving

HERE = Path(__file__).parent
WARMUP = 2
PRODUCTS = {"mm", "linear", "addmm"}
Step = Callable[[], None]


class Sleeping(TorchDispatchMode):
    """Products take their time without a core, and give zeros."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        name = func.overloadpacket.__name__
        if name not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        left, right = (args[1], args[2]) if name == "addmm" else (args[0], args[1])
        columns = right.shape[0 if name == "linear" else 1]
        time.sleep(self.seconds * left.numel() * columns / 1e9)
        return left.new_zeros(*left.shape[:-1], columns)


def worker(rank: int, port: int, options: argparse.Namespace, hidden: int, results: Any) -> None:
    """One process: both ways, in turn."""
    torch.set_num_threads(1)
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launcher.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    dist.init_process_group("gloo")
    ways = build(hidden, options.tokens)
    times = measure(ways, options.rounds, Sleeping(options.sleep) if options.sleep else None)
    if rank == 0:
        results.put(times)
    dist.barrier()
    dist.destroy_process_group()


def build(hidden: int, tokens: int) -> dict[str, Step]:
    """One forward and backward, with starts and waits and without."""
    sizes = {"hidden": hidden, "inner": hidden * 11 // 4, "heads": hidden // 64, "tokens": tokens}
    sets = {name: str(value) for name, value in sizes.items()}
    program = shardlang.compile(HERE / "overlap.shard", sets=sets)
    batch = make_inputs(program.compiled.source, program.compiled.inputs, seed=0)
    ways: dict[str, Step] = {}
    for name in ("aside", "in turn"):
        every = written.STEP_PASSES
        if name == "in turn":
            written.STEP_PASSES = tuple(one for one in every if one is not schedule)
        module = program.load()
        ways[name] = step_of(module, module.shard_inputs(**batch))
        ways[name]()
        written.STEP_PASSES = every
    return ways


def step_of(module: torch.nn.Module, shards: dict[str, Tensor]) -> Step:
    """Forward and backward of a module."""

    def step() -> None:
        module.zero_grad()
        module(**shards).loss.backward()

    return step


class Blocked:
    """The seconds that a process waits for calls."""

    def __init__(self) -> None:
        self.seconds, wait = 0.0, Arriving.wait

        def timed_wait(arriving: Arriving) -> Tensor:
            start = time.perf_counter()
            out = wait(arriving)
            self.seconds += time.perf_counter() - start
            return out

        Arriving.wait = timed_wait  # type: ignore[method-assign]

    def take(self) -> float:
        """The seconds since the last time."""
        done, self.seconds = self.seconds, 0.0
        return done


def measure(ways: dict[str, Step], rounds: int, mode: Sleeping | None) -> dict[str, list[float]]:
    """Of every round the seconds of each way, and of its waits."""
    blocked, found = Blocked(), dict[str, list[float]]()
    for turn in range(WARMUP + rounds):
        for name in list(ways) if turn % 2 else list(ways)[::-1]:
            blocked.take()
            seconds = timed(ways[name], mode)
            if turn >= WARMUP:
                found.setdefault(name, []).append(seconds)
                found.setdefault(f"{name}, waiting", []).append(blocked.take())
    return found


def timed(step: Step, mode: Sleeping | None) -> float:
    """Seconds until both ranks have done one step."""
    dist.barrier()
    start = time.perf_counter()
    if mode is None:
        step()
    else:
        with mode:
            step()
    dist.barrier()
    return time.perf_counter() - start


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median and third quartile."""
    return [round(value, 4) for value in statistics.quantiles(values, n=4)]


def run(hidden: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one size."""
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    mp.start_processes(worker, (free_port(), options, hidden, results), 2)
    times: dict[str, list[float]] = results.get()
    rounds = zip(times["in turn"], times["aside"], times["in turn, waiting"], strict=True)
    return {
        "hidden": hidden,
        "tokens": options.tokens,
        "rounds": options.rounds,
        "sleep": options.sleep,
        "seconds": {name: quartiles(values) for name, values in times.items()},
        "hidden_share": quartiles([(slow - fast) / waiting for slow, fast, waiting in rounds]),
    }


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def main() -> None:
    """Print one JSON line per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--tokens", type=int, default=128, help="of each row of the batch")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--sleep", type=float, default=0.0, metavar="S")
    options = parser.parse_args()
    for hidden in options.hidden:
        print(json.dumps(run(hidden, options)), flush=True)


if __name__ == "__main__":
    main()
