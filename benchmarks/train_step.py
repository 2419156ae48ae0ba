"""A whole training step beside that of another system: forward, backward and AdamW.

    python benchmarks/train_step.py --against fsdp2 --hidden 256 --pairs 30

Both systems run one Llama in the same processes of one thread each, 2 over gloo (1 for `plain`),
with the same weights and batch, and torch's fused AdamW. Steps alternate, ours first in every
second pair, and a ratio is of one pair, ours over the other. The losses of three steps are compared
before. `wall` are the seconds until the last rank is done, and `cores` those that all cores work
for rank 0: where other work shares the machine these say more. `bytes` is the most that is alive in
storages during a step, what lies there all the time included.

- `fsdp2`: every parameter stored over both, beside `fully_shard` of each layer and of the model;
- `ddp`: data parallelism, beside `DistributedDataParallel`;
- `megatron`: tensor parallelism, beside the program written by hand in `megatron.py`;
- `plain`: one device, beside the model as it is.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from megatron import Llama
from step_time import free_port
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import shardlang
from shardlang.api import Program
from shardlang.capture import load_plain, make_inputs

HERE = Path(__file__).parent
WARMUP = 3
MODEL = f"""
let hidden = 256
let inner = 704
let heads = 4
let tokens = 128
model hf("{HERE / "llama.json"}", task = "causal-lm", hidden_size = hidden,
  intermediate_size = inner, num_attention_heads = heads, num_key_value_heads = heads)
optimizer adamw(lr = 1e-4)
"""
ROWS = "input input_ids, labels : i64[4, tokens] below 4096"
SPECS = {
    "fsdp2": f'mesh {{ dp = 2 }}{MODEL}{ROWS} [dp, _]\nstore "**" over dp regather',
    "ddp": f"mesh {{ dp = 2 }}{MODEL}{ROWS} [dp, _]",
    "megatron": f"""mesh {{ tp = 2 }}{MODEL}{ROWS} [_, _]
        param "**.embed_tokens.weight" [tp, _]
        param "**.{{q,k,v,gate,up}}_proj.weight" [tp, _]
        param "**.{{o,down}}_proj.weight" [_, tp]
        param "lm_head.weight" [tp, _]""",
    "plain": f"mesh {{ dp = 1 }}{MODEL}{ROWS} [_, _]",
}
Step = Callable[[], Tensor]


def worker(rank: int, port: int, options: argparse.Namespace, results: Any) -> None:
    """One process: build both, compare them, time them."""
    torch.set_num_threads(1)
    world = 1 if options.against == "plain" else 2
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launcher.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    if world > 1:
        dist.init_process_group("gloo")
    steps = build(options)
    losses = {name: [float(step()) for _ in range(WARMUP)] for name, step in steps.items()}
    # The mean of the ranks' means is not that of all tokens where ranks leave out others.
    assert torch.allclose(*map(torch.tensor, losses.values()), rtol=1e-3), losses
    found = {"bytes": {name: peak(step) for name, step in steps.items()}}
    found |= measure(steps, options.pairs)
    if rank == 0:
        results.put(found)
    meet()


def build(options: argparse.Namespace) -> dict[str, Step]:
    """A step of ours, and one of the other system."""
    size = options.hidden
    sizes = {"hidden": size, "inner": size * 11 // 4, "heads": size // 64, "tokens": options.tokens}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.shard"
        path.write_text(SPECS[options.against])
        program = shardlang.compile(path, sets={name: str(n) for name, n in sizes.items()})
    batch = make_inputs(program.compiled.source, program.compiled.inputs, seed=0)
    ours = program.load()
    shards = ours.shard_inputs(**batch)
    return {
        "shardlang": step_of(lambda: ours(**shards).loss, program.optimizer()),
        options.against: other(options.against, program, batch),
    }


def other(name: str, program: Program, batch: Mapping[str, Tensor]) -> Step:
    """A step of the other system."""
    model = load_plain(program.compiled.source, 0)
    if name == "megatron":
        by_hand = Llama(dict(model.state_dict()), model.config)
        given = batch["input_ids"], batch["labels"]
        return step_of(lambda: by_hand(*given), fused(by_hand.parameters()))
    mine = batch if name == "plain" else {k: rows_of(x) for k, x in batch.items()}
    made: nn.Module = model
    if name == "ddp":
        made = DistributedDataParallel(model)
    if name == "fsdp2":
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    return step_of(lambda: made(**mine).loss, fused(made.parameters()), mean=name != "plain")


def rows_of(x: Tensor) -> Tensor:
    """The rows of this rank."""
    return x.chunk(2)[dist.get_rank()]


def fused(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of all."""
    return torch.optim.AdamW(params, lr=1e-4, fused=True)


def step_of(
    loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer, mean: bool = False
) -> Step:
    """Forward, backward and update; the loss is for comparison, where each rank has its own."""

    def step() -> Tensor:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def averaged() -> Tensor:
        loss = step()
        dist.all_reduce(loss)
        return loss / 2

    return averaged if mean else step


class Alive(TorchDispatchMode):
    """The most bytes in storages, looked at behind every op."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self.storages: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, made)):
            if isinstance(tensor, Tensor):
                self.see(tensor)
        self.most = max(self.most, self.now())
        return made

    def see(self, tensor: Tensor) -> None:
        """Count the storage of a tensor from now on."""
        local = getattr(tensor, "_local_tensor", tensor)
        storage = local.untyped_storage()
        self.storages[storage._cdata] = torch.multiprocessing.reductions.StorageWeakRef(storage)

    def now(self) -> int:
        """Bytes of the storages that are there."""
        self.storages = {key: ref for key, ref in self.storages.items() if not ref.expired()}
        found = (
            torch.UntypedStorage._new_with_weak_ptr(ref.cdata) for ref in self.storages.values()
        )
        return sum(storage.nbytes() for storage in found if storage is not None)


def peak(step: Step) -> int:
    """The most bytes alive in a step; a step before it shows what lies there all the time."""
    gc.collect()
    with Alive() as alive:
        step()
        alive.most = 0
        step()
    return alive.most


def measure(steps: Mapping[str, Step], pairs: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every step, and seconds of all cores for this rank."""
    names = list(steps)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cores: dict[str, list[float]] = {name: [] for name in names}
    for pair in range(pairs):
        for name in names if pair % 2 else names[::-1]:
            meet()
            start, used = time.perf_counter(), time.process_time()
            steps[name]()
            cores[name].append(time.process_time() - used)
            meet()
            wall[name].append(time.perf_counter() - start)
    return {"wall": wall, "cores": cores}


def meet() -> None:
    """Wait for the other rank."""
    if dist.is_initialized():
        dist.barrier()


def quartiles(values: Iterable[float]) -> list[float]:
    """First quartile, median and third quartile."""
    return [round(value, 3) for value in statistics.quantiles(values, n=4)]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one pair of systems."""
    results = mp.get_context("spawn").SimpleQueue()
    world = 1 if options.against == "plain" else 2
    mp.start_processes(worker, (free_port(), options, results), world)
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
        "ratio, bytes": round(found["bytes"]["shardlang"] / found["bytes"][options.against], 3),
    }


def main() -> None:
    """Print one JSON line per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", choices=sorted(SPECS), default="fsdp2")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--tokens", type=int, default=128, help="of each row of the batch")
    parser.add_argument("--pairs", type=int, default=30)
    options = parser.parse_args()
    sizes: list[int] = options.hidden
    for size in sizes:
        print(json.dumps(run(argparse.Namespace(**{**vars(options), "hidden": size}))), flush=True)


if __name__ == "__main__":
    main()
