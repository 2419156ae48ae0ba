"""Packed documents train a Llama as documents alone do, through the statement.

The model computes in float64, and its loss in float32.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import shardlang
from shardlang.capture import load_plain
from shardlang.runtime.data import TokenWriter
from shardlang.training.data import evaluation_stream

LLAMA = {
    "model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
B, S = 3, 12
SPEC = f"""
mesh {{ dp = 1 }}
model hf("llama.json", task = "causal-lm", dtype = "float64", attn_implementation = "eager")
input input_ids, labels, position_ids : i64[{B}, {S}] [dp, _]
data "tokens.bin" packed (shuffle = false, validation = 0.3)
optimizer sgd(lr = 0.1)
"""
LENGTHS = (5, 1, 9, 13, 2, 3, 8, 4, 11, 6, 1, 1, 7, 15, 14)


def test_packed_documents_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "llama.json").write_text(json.dumps(LLAMA))
    (tmp_path / "spec.shard").write_text(SPEC)
    drawn = np.random.RandomState(1)
    documents = [drawn.randint(0, 50, length).tolist() for length in LENGTHS]
    with TokenWriter(tmp_path / "tokens.bin", 50, "") as writer:
        for ids in documents:
            writer.add(ids)
        writer.commit()
    program = shardlang.compile(tmp_path / "spec.shard")
    program.load(seed=1)
    found = [record.loss for record in program.trainer(seed=1).steps(1)]
    plain = load_plain(program.compiled.source, 1)
    assert found == pytest.approx([alone(plain, documents, B * S)], rel=1e-7)
    held_out = next(evaluation_stream(program.compiled, 0))
    assert isinstance(held_out["input_ids"], torch.Tensor)
    assert held_out["input_ids"].flatten().tolist() == list(chain(*documents))[5 * S : 8 * S]


@torch.no_grad()
def alone(model: torch.nn.Module, documents: list[list[int]], tokens: int) -> float:
    """The mean loss over a batch's tokens, each window's part of a document by itself."""
    losses = []
    place = 0
    for ids in documents:
        while ids and place < tokens:
            piece, ids = ids[: S - place % S], ids[S - place % S :]
            place += len(piece)
            if len(piece) > 1:
                given = torch.tensor([piece])
                logits = model(input_ids=given).logits[0, :-1]
                losses.append(cross_entropy(logits.float(), given[0, 1:], reduction="none"))
    return float(torch.cat(losses).mean())
