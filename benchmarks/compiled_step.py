"""A compiled forward and backward beside what `torch.compile` makes of other programs.

    python benchmarks/compiled_step.py --against plain --hidden 256 --pairs 30

One Llama with the same weights and batch, compiled by inductor both ways, in the same processes of
one thread each: one for `plain`, the model as it is, and 2 over gloo for `megatron`, the program
written by hand in `megatron.py`, and `dtensor`, `parallelize_module`. Losses and all gradients are
compared before. Steps alternate, ours first in every second pair, and a ratio is of one pair, ours
over the other: of the seconds until the last rank is done (`wall`), and of those that all cores
work for rank 0 (`cores`), which say more where other work shares the machine. `compile_s` are those
of the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from dtensor import DTensorLlama
from megatron import Llama
from step_time import Params, Step, backward, free_port, gradients, named
from torch import Tensor, nn
from train_step import SPECS, measure, meet, quartiles

import shardlang
from shardlang.capture import load_plain, make_inputs

WARMUP = 3
SYSTEMS = {"plain": 1, "megatron": 2, "dtensor": 2}
"""What ours is compared with, and on how many processes."""


def worker(rank: int, port: int, options: argparse.Namespace, results: Any) -> None:
    """One process: build both, compare them, time them."""
    torch.set_num_threads(1)
    world = SYSTEMS[options.against]
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launcher.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    if world > 1:
        dist.init_process_group("gloo")
    programs = build(options)
    first = {name: _seconds(step) for name, (step, _) in programs.items()}
    check(programs)
    steps = {name: freed(step, params) for name, (step, params) in programs.items()}
    for _ in range(WARMUP):
        for step in steps.values():
            step()
    found: dict[str, Any] = {"compile_s": first}
    found |= measure(steps, options.pairs)
    if rank == 0:
        results.put(found)
    meet()


def build(options: argparse.Namespace) -> dict[str, tuple[Step, Params]]:
    """Our step and the other system's, with the parameters of each by name."""
    size = options.hidden
    sizes = {"hidden": size, "inner": size * 11 // 4, "heads": size // 64, "tokens": options.tokens}
    text = SPECS["plain" if options.against == "plain" else "megatron"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.shard"
        path.write_text(text + "\n" + options.lines)
        program = shardlang.compile(path, sets={name: str(n) for name, n in sizes.items()})
    source = program.compiled.source
    batch = make_inputs(source, program.compiled.inputs, seed=0)
    ours = program.load(compile=True)
    shards = ours.shard_inputs(**batch)
    model = load_plain(source, 0)
    return {
        "shardlang": (lambda: backward(ours(**shards).loss), named(ours)),
        options.against: other(options.against, model, batch),
    }


def other(name: str, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Step, Params]:
    """The step of the other system, compiled."""
    ids, labels = batch["input_ids"], batch["labels"]
    if name == "dtensor":
        tensors = DTensorLlama(model)
        params = tensors.names()
        tensors.model = torch.compile(tensors.model)
        return (lambda: tensors.step(ids, labels)), params
    if name == "megatron":
        by_hand = Llama(dict(model.state_dict()), model.config)
        run = torch.compile(by_hand)
        return (lambda: backward(run(ids, labels))), by_hand.names()
    compiled = torch.compile(model)
    return (lambda: backward(compiled(**batch).loss)), named(model)


def check(programs: Mapping[str, tuple[Step, Params]]) -> None:
    """Assert that both have the same loss and the same local gradients."""
    for _, params in programs.values():
        gradients(params)
    losses = [step().detach() for step, _ in programs.values()]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    mine, theirs = (gradients(params) for _, params in programs.values())
    assert mine.keys() == theirs.keys()
    for key, wanted in theirs.items():
        slack = 1e-5 * float(wanted.abs().max())
        torch.testing.assert_close(mine[key], wanted, rtol=1e-3, atol=slack)


def freed(step: Step, params: Params) -> Step:
    """A step that begins without gradients."""

    def begun() -> Tensor:
        for param in params.values():
            param.grad = None
        return step()

    return begun


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return round(time.perf_counter() - start, 1)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one size."""
    results = mp.get_context("spawn").SimpleQueue()
    mp.start_processes(worker, (free_port(), options, results), SYSTEMS[options.against])
    found = results.get()
    ratios = {
        kind: [a / b for a, b in zip(*found[kind].values(), strict=True)]
        for kind in ("wall", "cores")
    }
    return {
        "against": options.against,
        "hidden": options.hidden,
        "pairs": options.pairs,
        "load": round(os.getloadavg()[0], 1),
        "ratio, wall": quartiles(ratios["wall"]),
        "ratio, cores": quartiles(ratios["cores"]),
        "compile_s": found["compile_s"],
    }


def main() -> None:
    """Print one JSON line per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", choices=sorted(SYSTEMS), default="plain")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--tokens", type=int, default=128, help="of each row of the batch")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--lines", default="", help="more lines of the spec")
    options = parser.parse_args()
    sizes: list[int] = options.hidden
    for size in sizes:
        print(json.dumps(run(argparse.Namespace(**{**vars(options), "hidden": size}))), flush=True)


if __name__ == "__main__":
    main()
