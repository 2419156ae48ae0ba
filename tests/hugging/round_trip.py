"""From a local directory through training to an exported one: what the tests run on every rank."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

import shardlang

MESH = "mesh { dp = 1 tp = 2 }\n"
IDS = "input input_ids, labels : i64[4, 6] [dp, _]\n"
SPECS = {
    "llama": (
        "causal-lm",
        'param "**.{q,k,v,gate,up}_proj.weight" [tp, _]\nparam "**.{o,down}_proj.weight" [_, tp]\n'
        'store "model.embed_tokens.weight" over tp\n',
    ),
    "gpt2": (
        "causal-lm",
        'param "**.c_attn.*" [..., tp(3)]\nparam "**.{attn,mlp}.c_proj.weight" [tp, _]\n'
        'param "**.c_fc.*" [..., tp]\n',
    ),
    "t5": ("seq2seq-lm", 'store "**" over tp\n'),
    "mixtral": ("causal-lm", 'param "**.experts.*" [tp, ...]\n'),
}
"""Task and layouts of each family; each model's directory has its name."""

STEPS = 3


def batch(step: int) -> dict[str, Tensor]:
    """Tokens of all the models."""
    made = torch.Generator().manual_seed(step)
    ids, labels = torch.randint(0, 30, (2, 4, 6), generator=made)
    return {"input_ids": ids, "labels": labels}


def everything() -> dict[str, dict[str, Tensor]]:
    """Of every family the whole weights after some steps, which are saved and exported."""
    folder = Path(os.environ["SCRATCH"])
    return {name: trained(name, folder) for name in SPECS}


def write_spec(name: str, folder: Path) -> None:
    """Write the spec of one family."""
    task, layouts = SPECS[name]
    (folder / f"{name}.shard").write_text(
        f'{MESH}model hf("{folder / name}", task = "{task}")\n{IDS}{layouts}'
        "optimizer sgd(lr = 0.1)\n"
    )


def trained(name: str, folder: Path) -> dict[str, Tensor]:
    """Train one family by its spec; save a checkpoint of it, and export the module."""
    program = shardlang.compile(folder / f"{name}.shard")
    module = program.load()
    losses = [program.step(batch(step)).loss for step in range(STEPS)]
    assert len(set(losses)) == STEPS
    program.export(module, folder / "exported" / name)
    with program.checkpoints(folder / "runs" / name / "checkpoints") as checkpoints:
        checkpoints.save(STEPS, {"model": module})
    return {key: value.full_tensor().clone() for key, value in module.state_dict().items()}
