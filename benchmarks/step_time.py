"""Step time, forward and backward, of one Llama on 2 gloo processes of one thread each.

Three programs with the same weights, loss and gradients, which are compared first:
`shardlang` (eager), `megatron` (by hand, the same collectives) and `dtensor` (parallelize_module).
Rounds are interleaved; each gives one ratio against either of the others.
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
from dtensor import DTensorLlama
from megatron import Llama
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import shardlang
from shardlang.capture import load_plain, make_inputs

HERE = Path(__file__).parent
SIZES = (256, 512, 1024)
WARMUP = 3
Step = Callable[[], Tensor]
Params = dict[str, nn.Parameter]


def worker(rank: int, world: int, port: int, hidden: int, rounds: int, results: Any) -> None:
    """One process: build the three programs, compare them, time them."""
    torch.set_num_threads(1)
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launcher.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    dist.init_process_group("gloo")
    programs = build(hidden)
    check(programs)
    times = measure({name: step for name, (step, _) in programs.items()}, rounds)
    if rank == 0:
        results.put(times)
    dist.barrier()
    dist.destroy_process_group()


def build(hidden: int) -> dict[str, tuple[Step, Params]]:
    """Each program as a function that does one step, with its parameters by name."""
    sizes = {"hidden": hidden, "inner": hidden * 11 // 4, "heads": hidden // 64}
    sets = {name: str(value) for name, value in sizes.items()}
    program = shardlang.compile(HERE / "step_time.shard", sets=sets)
    source = program.compiled.source
    batch = make_inputs(source, program.compiled.inputs, seed=0)
    ids, labels = batch["input_ids"], batch["labels"]
    plain = load_plain(source, 0)
    ours = program.load()
    shards = ours.shard_inputs(**batch)
    by_hand = Llama(dict(plain.state_dict()), plain.config)
    tensors = DTensorLlama(load_plain(source, 0))
    return {
        "shardlang": (lambda: backward(ours(**shards).loss), named(ours)),
        "megatron": (lambda: backward(by_hand(ids, labels)), by_hand.names()),
        "dtensor": (lambda: tensors.step(ids, labels), tensors.names()),
    }


def backward(loss: Tensor) -> Tensor:
    """Backpropagate a loss and return it."""
    loss.backward()
    return loss


def named(module: nn.Module) -> Params:
    """Parameters by name."""
    return dict(module.named_parameters())


def check(programs: dict[str, tuple[Step, Params]]) -> None:
    """Assert that all programs have the same loss and the same local gradients."""
    losses = {name: step().detach() for name, (step, _) in programs.items()}
    grads = {name: gradients(params) for name, (_, params) in programs.items()}
    for name in ("shardlang", "dtensor"):
        torch.testing.assert_close(losses[name], losses["megatron"], rtol=1e-5, atol=0)
        assert grads[name].keys() == grads["megatron"].keys()
        for key, wanted in grads["megatron"].items():
            slack = 1e-5 * float(wanted.abs().max())
            torch.testing.assert_close(grads[name][key], wanted, rtol=1e-3, atol=slack)


def gradients(params: Params) -> dict[str, Tensor]:
    """Local gradients by name."""
    found = {}
    for name, value in params.items():
        grad = value.grad
        assert grad is not None, name
        if isinstance(grad, DTensor) and isinstance(value, DTensor):
            grad = grad.redistribute(placements=value.placements).to_local()
        found[name] = grad
        value.grad = None
    return found


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step, the programs in turn, in an order that rotates."""
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARMUP + rounds):
        for name in names[turn % 3 :] + names[: turn % 3]:
            seconds = timed(steps[name])
            if turn >= WARMUP:
                times[name].append(seconds)
    return times


def timed(step: Step) -> float:
    """Seconds until the last rank has done one step."""
    dist.barrier()
    start = time.perf_counter()
    step()
    dist.barrier()
    return time.perf_counter() - start


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median and third quartile."""
    return [round(value, 4) for value in statistics.quantiles(values, n=4)]


def run(hidden: int, rounds: int, world: int = 2) -> dict[str, Any]:
    """Measure one size; times in seconds and pairwise ratios of shardlang to the others."""
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    port = free_port()
    mp.start_processes(worker, (world, port, hidden, rounds, results), world)
    times: dict[str, list[float]] = results.get()
    ratios = {
        other: [a / b for a, b in zip(times["shardlang"], times[other], strict=True)]
        for other in ("megatron", "dtensor")
    }
    return {
        "hidden": hidden,
        "rounds": rounds,
        "step_s": {name: quartiles(values) for name, values in times.items()},
        "ratio": {name: quartiles(values) for name, values in ratios.items()},
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--json", action="store_true", help="one JSON line per size")
    args = parser.parse_args()
    for hidden in args.sizes:
        found = run(hidden, args.rounds)
        if args.json:
            print(json.dumps(found), flush=True)
            continue
        print(f"hidden {hidden}, {args.rounds} interleaved rounds: quartile, median, quartile")
        for name, values in found["step_s"].items():
            print(f"  {name:22}" + "".join(f"{1e3 * value:9.1f} ms" for value in values))
        for name, values in found["ratio"].items():
            label = f"shardlang / {name}"
            print(f"  {label:22}" + "".join(f"{value:9.3f}   " for value in values), flush=True)


if __name__ == "__main__":
    main()
