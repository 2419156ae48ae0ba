"""`verify --shrink`: what is cut, what stays, and that the decisions are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardlang.proof.shrunk import smaller
from tests.broad import broad
from tests.commands import document, shardlang

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 330,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 1001,
    "max_position_embeddings": 256,
}
TRAIN = """\
mesh { dp = 2 tp = 2 }
model hf("config.json", task = "causal-lm")
input input_ids, labels : i64[9, 100] [dp, _]
param "**.{q,k,v,gate,up}_proj.weight" [tp, _]
param "**.{o,down}_proj.weight" [_, tp]
param "{**.embed_tokens,lm_head}.weight" [tp, _]
"""
DECODE = """\
mesh { dp = 2 tp = 2 }
model hf("config.json", task = "causal-lm", mode = "eval")
input input_ids : i64[8, 1] [dp, _]
input "past_key_values.*.{key,value}" : f32[8, 2, 40, 32] [dp, tp, _, _]
param "**.{q,k,v}_proj.weight" [tp, _]
param "**.o_proj.weight" [_, tp]
"""


def written(folder: Path, text: str, **changes: Any) -> Path:
    """A spec beside its configuration."""
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    path = folder / "model.shard"
    path.write_text(text)
    return path


def test_layers_batch_and_widths_are_cut(tmp_path: Path) -> None:
    found = document("verify", "--shrink", written(tmp_path, TRAIN))
    assert found["gradients"]["max_error"] < 1e-9
    assert found["cut"] == [
        "num_hidden_layers 5 -> 2",
        "intermediate_size 330 -> 66",
        "vocab_size 1001 -> 129",
        "hidden_size 192 -> 48",
        "head_dim 32 -> 8",
        "input input_ids [9, 100] -> [5, 16]",
        "input labels [9, 100] -> [5, 16]",
    ]


def test_sizes_that_an_input_has_are_kept(tmp_path: Path) -> None:
    found = document("verify", "--shrink", written(tmp_path, DECODE))
    assert found["outputs"]["max_error"] < 1e-9
    assert not any("hidden_size" in line for line in found["cut"])


@pytest.mark.parametrize(("size", "least"), [(1000, 8), (1001, 8), (7, 8), (30, 16)])
def test_a_smaller_size_leaves_the_same_remainder_or_none(size: int, least: int) -> None:
    for shards in (2, 3, 4):
        made = smaller(size, shards, least)
        assert made <= size
        assert (made % shards == 0) == (size % shards == 0)


def test_there_may_be_nothing_to_cut(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Linear(8, 8)\n"
    )
    path = tmp_path / "plain.shard"
    path.write_text('mesh { dp = 2 }\nmodel "plain.py:build"\ninput input : f32[2, 8] [dp, _]\n')
    status, _, err = shardlang("verify", "--shrink", path)
    assert status == 1
    assert "SH0508" in err and "can be cut" in err


PIPELINE = """\
mesh { pp = 4 tp = 2 }
model hf("config.json", task = "causal-lm", mode = "train")
input input_ids, labels : i64[64, 100] [_, _]
pipeline pp { split "model.layers" microbatches 8 }
param "**.{q,k,v,gate,up}_proj.weight" [tp, _]
param "**.{o,down}_proj.weight" [_, tp]
param "{**.embed_tokens,lm_head}.weight" [tp, _]
"""


@broad
def test_a_layer_of_each_stage_stays(tmp_path: Path) -> None:
    """And of what does not divide over the stages the remainder: the last stage has more."""
    path = written(tmp_path, PIPELINE, num_hidden_layers=17)
    found = document("verify", "--shrink", path)
    assert found["pipeline"] == {"schedule": "1f1b", "stages": 4, "ranks": 4, "microbatches": 8}
    assert found["devices"] == 8 and found["accumulated"]["max_error"] < 1e-9
    assert found["cut"][0] == "num_hidden_layers 17 -> 5"
    assert "input input_ids [64, 100] -> [16, 16]" in found["cut"]


SKIPPING = """
import torch
from torch import nn

class Skipping(nn.Module):
    def __init__(self, num_layers):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(num_layers))

    def forward(self, x):
        kept = []
        for place, layer in enumerate(self.layers):
            x = torch.tanh(layer(x))
            kept.append(x)
            if place >= 3:
                x = x + kept[place - 3]
        return {"loss": x.square().mean()}

def build(num_layers):
    return Skipping(num_layers)
"""


def test_stages_that_send_otherwise_are_found(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(SKIPPING)
    path = tmp_path / "model.shard"
    path.write_text(
        'mesh { pp = 2 }\nmodel "model.py:build"(num_layers = 8)\ninput x : f32[8, 6] [_, _]\n'
        'pipeline pp { split "layers" microbatches 2 }\n'
    )
    status, _, err = shardlang("verify", "--shrink", path)
    assert status == 1
    assert "SH0508" in err and "stage 0 sends" in err
