"""What the trainer costs around a step: its steps beside bare ones of the same module.

    python benchmarks/trainer_overhead.py --hidden 1024 --pairs 20

One Llama on one process of one thread, or on 2 over gloo (`--processes 2`). Pairs alternate, on the
same parameters and batch: a bare step is forward, backward, norm and update; a trainer's step reads
its batch, keeps its place, steps a schedule, and writes its line into a run's folder. The ratio is
of one pair, trainer over bare.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from step_time import free_port
from torch import Tensor

import shardlang
from shardlang.capture import make_inputs
from shardlang.runtime.trainer.run_folder import RunFolder
from shardlang.runtime.trainer.step import one_step
from shardlang.runtime.trainer.trainer import Trainer

HERE = Path(__file__).parent
WARMUP = 3
SPEC = f"""
let hidden = 256
let inner = 704
let tokens = 128
model hf("{HERE / "llama.json"}", task = "causal-lm", hidden_size = hidden,
  intermediate_size = inner, num_attention_heads = 4, num_key_value_heads = 4)
input input_ids, labels : i64[4, tokens] below 4096 [dp, _]
optimizer adamw(lr = 1e-4)
learning_rate warmup(steps = 100) cosine(steps = 1000)
"""


def main() -> None:
    """Time the pairs, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    with mp.Manager() as manager:
        results: Any = manager.dict()
        mp.spawn(worker, (free_port(), options, results), nprocs=options.processes)
        print(json.dumps({**vars(options), **results}))


def worker(rank: int, port: int, options: argparse.Namespace, results: Any) -> None:
    """One process: its pairs."""
    torch.set_num_threads(1)
    launcher = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": options.processes, "MASTER_PORT": port,
        "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip
    os.environ.update({name: str(value) for name, value in launcher.items()})
    with tempfile.TemporaryDirectory() as folder:
        trainer, batch = made(options, Path(folder), rank)
        ratios, bare = pairs(trainer, batch, options.pairs)
    if rank == 0:
        low, middle, high = statistics.quantiles(ratios, n=4)
        results.update(ratio=middle, quartiles=[low, high], bare_s=statistics.median(bare))
    if dist.is_initialized():
        dist.destroy_process_group()


def made(options: argparse.Namespace, folder: Path, rank: int) -> tuple[Trainer, dict[str, Tensor]]:
    """The trainer with a folder, and its one batch."""
    path = folder / "a.shard"
    path.write_text(f"mesh {{ dp = {options.processes} }}\n{SPEC}")
    sets = {"hidden": options.hidden, "inner": options.hidden * 11 // 4, "tokens": options.tokens}
    program = shardlang.compile(path, sets={name: str(value) for name, value in sets.items()})
    program.load()
    batch = make_inputs(program.compiled.source, program.compiled.inputs, 0)
    trainer = program.trainer(iter(lambda: batch, None))
    if rank == 0:
        run = RunFolder(folder / "run", path.read_text(), {})
        run.begin(0)
        trainer.after_step.append(run.after_step)
    return trainer, batch


def pairs(
    trainer: Trainer, batch: dict[str, Tensor], count: int
) -> tuple[list[float], list[float]]:
    """The ratios, and the seconds of the bare steps."""

    def bare() -> None:
        one_step(trainer.trainee, trainer.trainee.prepare(batch), trainer.optimizer)

    def full() -> None:
        for _ in trainer.steps(1):
            pass

    ratios, seconds = [], []
    for number in range(WARMUP + count):
        order = (bare, full) if number % 2 else (full, bare)
        taken = {step: timed(step) for step in order}
        if number >= WARMUP:
            ratios.append(taken[full] / taken[bare])
            seconds.append(taken[bare])
    return ratios, seconds


def timed(step: Any) -> float:
    """The seconds of a step."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
