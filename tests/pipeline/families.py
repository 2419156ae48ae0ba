"""Small models for pipelines of up to eight stages, and how their tensors lie on a mesh."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Family:
    """A model, and what a spec says of it.

    Attributes:
        model: the statement that names it, or what builds it, with eight layers.
        inputs: the declarations; `ROWS` stands for the layout of the rows.
        params: how parameters lie along `tp`.
        lists: the module lists of its layers, as `split` names them.
        config: what `config.json` says, of a Hugging Face model.
        counts: the entry of that for the layers of a list.
    """

    name: str
    model: str | Callable[[], nn.Module]
    inputs: str
    params: str
    lists: tuple[str, ...] = ("layers",)
    config: dict[str, Any] | None = None
    counts: str = "num_hidden_layers"

    def write(
        self, folder: Path, mesh: str, schedule: str, more: str = "", layers: int = 8
    ) -> Path:
        """Write the spec of a mesh with an axis `pp`, and return its path.

        There are two microbatches for each rank, as many as every schedule takes.

        Args:
            mesh: such as `pp = 2, dp = 2`.
        """
        axes = {axis.split("=")[0].strip() for axis in mesh.split(",")}
        rows = next((axis for axis in ("dp", "fsdp") if axis in axes), "_")
        lines = ["mesh {", *(f"  {axis.strip()}" for axis in mesh.split(",")), "}"]
        if isinstance(self.model, str):
            config = {**(self.config or {}), self.counts: layers // len(self.lists)}
            (folder / "config.json").write_text(json.dumps(config))
            lines.append(self.model)
        split = ", ".join(f'"{name}"' for name in self.lists)
        many = 2 * int(mesh.split(",")[0].split("=")[1])
        stated = f"split {split}  schedule {schedule}  microbatches {many}"
        lines += [self.inputs.replace("ROWS", rows), f"pipeline pp {{ {stated} }}"]
        lines += [self.params] if "tp" in axes else []
        lines += ['store "**" over fsdp'] if "fsdp" in axes else []
        path = folder / f"{self.name}.shard"
        path.write_text("\n".join([*lines, more]) + "\n")
        return path


def hf(task: str) -> str:
    """The statement of a Hugging Face model."""
    return f'model hf("config.json", task = "{task}", mode = "train")'


TOKENS = "input input_ids, labels : i64[8, 6] [ROWS, _]"
LLAMA_SIZES = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 20,
    "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}  # fmt: skip
LLAMA = Family(
    "llama",
    hf("causal-lm"),
    TOKENS,
    'param "**.embed_tokens.weight" [tp, _]\nparam "**.{q,k,v}_proj.weight" [tp, _]\n'
    'param "**.o_proj.weight" [_, tp]\nparam "**.{gate,up}_proj.weight" [tp, _]\n'
    'param "**.down_proj.weight" [_, tp]\nparam "lm_head.weight" [tp, _]',
    ("model.layers",),
    {"model_type": "llama", **LLAMA_SIZES},
)
GPT2 = Family(
    "gpt2",
    hf("causal-lm"),
    TOKENS,
    'param "transformer.wte.weight" [tp, _]\nparam "**.c_attn.weight" [_, tp(3)]\n'
    'param "**.c_attn.bias" [tp(3)]\nparam "**.c_fc.weight" [_, tp]\n'
    'param "**.c_fc.bias" [tp]\nparam "**.c_proj.weight" [tp, _]',
    ("transformer.h",),
    {
        "model_type": "gpt2", "vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_head": 4,
        "bos_token_id": 0, "eos_token_id": 0,
    },
    "n_layer",
)  # fmt: skip
BERT = Family(
    "bert",
    hf("masked-lm"),
    "input input_ids, attention_mask, labels : i64[8, 6] [ROWS, _]",
    'param "**.word_embeddings.weight" [tp, _]\n'
    'param "**.attention.self.{query,key,value}.{weight,bias}" [tp, ...]\n'
    'param "**.attention.output.dense.weight" [_, tp]\n'
    'param "**.intermediate.dense.{weight,bias}" [tp, ...]\n'
    'param "**.layer.*.output.dense.weight" [_, tp]',
    ("bert.encoder.layer",),
    {
        "model_type": "bert", "vocab_size": 50, "hidden_size": 16,
        "num_attention_heads": 4, "intermediate_size": 20, "max_position_embeddings": 16,
    },
)  # fmt: skip
T5 = Family(
    "t5",
    hf("seq2seq-lm"),
    "input input_ids : i64[8, 6] [ROWS, _]\ninput labels : i64[8, 4] [ROWS, _]",
    'param "shared.weight" [tp, _]\n'
    'param "**.{SelfAttention,EncDecAttention}.{q,k,v}.weight" [tp, _]\n'
    'param "**.{SelfAttention,EncDecAttention}.o.weight" [_, tp]\n'
    'param "**.relative_attention_bias.weight" [_, tp]\n'
    'param "**.DenseReluDense.wi.weight" [tp, _]\nparam "**.DenseReluDense.wo.weight" [_, tp]',
    ("encoder.block", "decoder.block"),
    {
        "model_type": "t5", "vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 20,
        "num_heads": 4, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16, "decoder_start_token_id": 0, "pad_token_id": 0,
        "eos_token_id": 1,
    },
    "num_layers",
)  # fmt: skip
MIXTRAL = Family(
    "mixtral",
    hf("causal-lm"),
    TOKENS,
    'param "**.embed_tokens.weight" [tp, _]\nparam "**.{q,k,v}_proj.weight" [tp, _]\n'
    'param "**.o_proj.weight" [_, tp]\nparam "**.experts.*" [tp, ...]\n'
    'param "lm_head.weight" [tp, _]',
    ("model.layers",),
    {"model_type": "mixtral", **LLAMA_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
)


class Level(nn.Module):
    """A convolution of a U-Net, which normalizes each picture."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(into, out, 3, padding=1), nn.GroupNorm(2, out)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(torch.tanh(self.norm(self.conv(x))))


class UNet(nn.Module):
    """Four levels down and four up, each of which reads what its mate on the way down made."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(Level(3 if i == 0 else 4, 4) for i in range(4))
        self.up = nn.ModuleList(Level(8 if i else 4, 4) for i in range(4))
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, pictures: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x, skips = pictures, []
        for level in self.down:
            x = level(x)
            skips.append(x)
            x = F.avg_pool2d(x, 2) if level is not self.down[3] else x
        for place, level in enumerate(self.up):
            if place:
                x = F.interpolate(x, scale_factor=2.0)
                x = torch.cat([x, skips[3 - place]], 1)
            x = level(x)
        return {"loss": F.cross_entropy(self.head(x), labels)}


UNET = Family(
    "unet",
    UNet,
    "input pictures : f32[8, 3, 8, 8] [ROWS, _, _, _]\n"
    "input labels : i64[8, 8, 8] below 5 [ROWS, _, _]",
    'param "{down,up}.*.conv.weight" [tp, ...]\nparam "{down,up}.*.conv.bias" [tp]',
    ("down", "up"),
)
FAMILIES = {one.name: one for one in (LLAMA, GPT2, BERT, T5, UNET, MIXTRAL)}
