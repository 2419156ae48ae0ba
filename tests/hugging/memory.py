"""What every rank takes on the host while it loads a checkpoint directory, beside what stays.

`python -m tests.hugging.memory [--layers N] [--hidden N] [--vocabulary N]` writes a checkpoint, by
default one of 2 GB, loads it on four processes, and says whether any of them took more than its own
shards and the largest tensor, with a little for what else a process does meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

import shardlang
from shardlang.capture import materialize
from shardlang.runtime.folder import Drafts
from shardlang.runtime.groups import join
from shardlang.runtime.module import held
from shardlang.runtime.weight_files import Kept, WeightFiles
from shardlang.runtime.whole import held_shard
from shardlang.training.run import sharded_module
from tests.runtime.spawn import spawn

SLACK_BYTES = 8 * 2**20
SPEC = """mesh {{ dp = {dp} tp = 2 }}
model hf("{folder}", task = "causal-lm")
input input_ids, labels : i64[4, 8] [dp, _]
param "**.{{q,k,v,gate,up}}_proj.weight" [tp, _]
param "**.{{o,down}}_proj.weight" [_, tp]
param "{{lm_head,model.embed_tokens}}.weight" [tp, _]
{store}
"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a Llama; by default it takes 2 GB in bf16."""

    hidden: int = 2048
    layers: int = 16
    vocabulary: int = 32000

    def config(self) -> transformers.LlamaConfig:
        """Its configuration."""
        return transformers.LlamaConfig(
            hidden_size=self.hidden, intermediate_size=3 * self.hidden, vocab_size=self.vocabulary,
            num_hidden_layers=self.layers, num_attention_heads=16, dtype="bfloat16",
            architectures=["LlamaForCausalLM"],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes of one rank: its shards, the model's largest tensor, and its peak above the start."""

    shards: int
    largest: int
    peak: int

    @property
    def ok(self) -> bool:
        """Whether the peak is the shards and one tensor."""
        return self.peak <= self.shards + self.largest + SLACK_BYTES


def write(folder: Path, sizes: Sizes, file_bytes: int) -> int:
    """Write a checkpoint of random values in several files with an index; its size in bytes."""
    config = sizes.config()
    with torch.device("meta"):
        named = transformers.LlamaForCausalLM(config).state_dict()
    kept = [Kept(name, tuple(x.shape), torch.bfloat16) for name, x in named.items()]
    total = sum(one.size_bytes for one in kept)
    drafts = Drafts(folder)
    files = WeightFiles(drafts.path, kept, file_bytes, {})
    for one in kept:
        files.add(one.name, torch.randn(one.shape, dtype=one.dtype))
    files.close()
    drafts.commit(files.written, total)
    config.save_pretrained(folder)
    return total


def measured(folder: Path, sizes: Sizes, ranks: int, file_bytes: int) -> tuple[int, list[Taken]]:
    """The size of a checkpoint in bytes, and what each rank takes to load it."""
    total = write(folder / "model", sizes, file_bytes)
    store = 'store "**" over dp' if ranks > 2 else ""
    text = SPEC.format(dp=ranks // 2, folder=folder / "model", store=store)
    (folder / "model.shard").write_text(text)
    job = "tests.hugging.memory:on_a_rank"
    return total, spawn(job, ranks, folder, 600, SCRATCH=str(folder))


def on_a_rank() -> Taken:
    """Load the model; all libraries are in memory before."""
    found = shardlang.compile(Path(os.environ["SCRATCH"]) / "model.shard").compiled
    groups = join(found.program.mesh)
    materialize(found.source, 0, lambda name, full: full[:0])
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    module = sharded_module(found, groups)
    peak = _memory("VmHWM") - before
    tensors = [tensor for _, tensor in held(module).tensors()]
    mine = [held_shard(tensor) for tensor in tensors]
    return Taken(
        sum(x.numel() * x.element_size() for x in mine),
        max(x.numel() * x.element_size() for x in tensors),
        peak,
    )


def _memory(what: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def main() -> int:
    """Print what each rank took; 1 if one took more than it should."""
    parser = argparse.ArgumentParser(prog="python -m tests.hugging.memory", description=__doc__)
    for name, default in asdict(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = Sizes(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as folder:
        total, found = measured(Path(folder), sizes, 4, 500 * 2**20)
    print(f"a checkpoint of {total:,} bytes on {len(found)} processes")
    for rank, one in enumerate(found):
        print(json.dumps({"rank": rank, **asdict(one), "ok": one.ok}))
    return 0 if all(one.ok for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
