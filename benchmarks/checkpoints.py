"""What saving in the background costs a training step.

    python benchmarks/checkpoints.py --hidden 1024 --every 10 --pairs 5

The Llama of `train_step.py`, every parameter stored over 2 gloo processes of one thread each, with
AdamW. Turns of `every` steps without a checkpoint and with one, saved after the first step of the
turn, alternate; a turn ends when its checkpoint is on the disk. `wall` is the time until the last
rank is done, `cores` what all cores work for rank 0: where other work shares the machine this says
more. `call` is how long `save` keeps the loop waiting.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from step_time import free_port
from train_step import SPECS

import shardlang
from shardlang.capture import make_inputs

WARMUP = 2


def worker(rank: int, port: int, options: argparse.Namespace, results: Any) -> None:
    """One process: turns without and with a checkpoint."""
    torch.set_num_threads(1)
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launcher.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    dist.init_process_group("gloo")
    size = options.hidden
    sizes = {"hidden": size, "inner": size * 11 // 4, "heads": size // 64, "tokens": options.tokens}
    path = Path(options.folder) / f"{rank}.shard"
    path.write_text(SPECS["fsdp2"])
    program = shardlang.compile(path, sets={name: str(n) for name, n in sizes.items()})
    batch = make_inputs(program.compiled.source, program.compiled.inputs, seed=0)
    model = program.load()
    state = {"model": model, "optimizer": program.optimizer()}
    checkpoints = program.checkpoints(Path(options.folder) / "saved", keep=1)
    for step in range(WARMUP):
        program.step(batch)
        checkpoints.save(step, state)
    checkpoints.wait()
    found: dict[str, list[float]] = {"call": []}
    for turn in range(2 * options.pairs):
        saves = bool(turn % 2) != bool(turn // 2 % 2)
        dist.barrier()
        began, worked = time.perf_counter(), time.process_time()
        for step in range(options.every):
            program.step(batch)
            if saves and not step:
                called = time.perf_counter()
                checkpoints.save(WARMUP + turn, state)
                found["call"].append(time.perf_counter() - called)
        checkpoints.wait()
        dist.barrier()
        name = "with" if saves else "without"
        found.setdefault(f"wall {name}", []).append(time.perf_counter() - began)
        found.setdefault(f"cores {name}", []).append(time.process_time() - worked)
    if rank == 0:
        results.put(found)
    dist.barrier()


def main() -> None:
    """Time the turns, and print the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", help="where to save; a temporary folder by default")
    options = parser.parse_args()
    options.folder = tempfile.mkdtemp(dir=options.folder)
    try:
        context = mp.get_context("spawn")
        results = context.SimpleQueue()
        mp.spawn(worker, (free_port(), options, results), nprocs=2)
        found = results.get()
        size = sum(path.stat().st_size for path in Path(options.folder).glob("saved/*/*"))
    finally:
        shutil.rmtree(options.folder)
    print(f"checkpoint of {size / 2**20:.0f} MiB every {options.every} steps")
    for kind in ("wall", "cores"):
        pairs = zip(found[f"{kind} with"], found[f"{kind} without"], strict=True)
        ratios = [a / b for a, b in pairs]
        step = statistics.median(found[f"{kind} without"]) / options.every
        print(
            f"{kind:5}  with / without: median {statistics.median(ratios):.3f},"
            f" {min(ratios):.3f} to {max(ratios):.3f}; a step takes {step:.2f} s"
        )
    print(f"call   {statistics.median(found['call']):.2f} s")


if __name__ == "__main__":
    main()
