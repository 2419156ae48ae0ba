"""Greedy decoding from an empty cache: what the tests of caches run on every rank."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import shardlang


def whole(x: Any) -> Tensor:
    """A tensor whole."""
    found: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return found


@torch.no_grad()
def greedy() -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
    """The weights of the model in the folder, the logits step by step, and the lengths."""
    spec = Path(os.environ["SCRATCH"]) / "spec.shard"
    module = shardlang.compile(spec).load("cpu").eval()
    config = transformers.AutoConfig.from_pretrained(spec.parent)
    cache: Any = transformers.DynamicCache(config=config)
    ids, logits, lengths = torch.arange(24).reshape(4, 6), [], []
    for _ in range(3):
        found: Any = module(**module.shard_inputs(input_ids=ids, past_key_values=cache))
        logits.append(whole(found.logits))
        lengths.append(cache.get_seq_length())
        ids = logits[-1][:, -1:].argmax(-1)
    return {n: whole(x) for n, x in module.state_dict().items()}, logits, lengths
