"""Tiny Hugging Face models with odd sizes, one per family, for tests of every stage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shardlang.capture import HfSource, InputSpec


@dataclass(frozen=True, slots=True)
class Family:
    """A model family: its configuration, the task it is built for, and its inputs."""

    name: str
    config: dict[str, Any]
    task: str
    inputs: tuple[InputSpec, ...]

    def write(self, folder: Path) -> Path:
        """Write the configuration as `<name>.json` and return its path."""
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(self.config))
        return path

    def source(self, folder: Path, **options: Any) -> HfSource:
        """The model's source, configured in `folder`."""
        return HfSource(self.write(folder), task=self.task, **options)


def tokens(batch: int, length: int, *names: str) -> tuple[InputSpec, ...]:
    """Integer inputs of shape `b s`."""
    return tuple(InputSpec(name, torch.int64, (batch, length)) for name in names)


LM_INPUTS = tokens(4, 10, "input_ids", "labels")


def _decoder(model_type: str, **changes: Any) -> Family:
    """A Llama-like causal language model: 2 layers, 6 heads in 2 or 3 groups, vocabulary 87."""
    config = {
        "model_type": model_type,
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 87,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    return Family(model_type, config, "causal-lm", LM_INPUTS)


def _encoder(model_type: str, **changes: Any) -> Family:
    """A BERT-like masked language model with its own dropout."""
    config = {
        "model_type": model_type,
        "hidden_size": 28,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 83,
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
        "pad_token_id": 1,
        **changes,
    }
    inputs = tokens(4, 10, "input_ids", "attention_mask", "labels")
    return Family(model_type, config, "masked-lm", inputs)


def llama() -> Family:
    return _decoder("llama")


def qwen2() -> Family:
    return _decoder("qwen2", tie_word_embeddings=True)


def qwen3() -> Family:
    return _decoder("qwen3", head_dim=10)


def mistral() -> Family:
    return _decoder("mistral", sliding_window=7)


def gemma2() -> Family:
    return _decoder(
        "gemma2", head_dim=8, num_key_value_heads=3, sliding_window=7, query_pre_attn_scalar=8
    )


def phi3() -> Family:
    return _decoder("phi3", num_key_value_heads=3, resid_pdrop=0.1, embd_pdrop=0.05)


def gpt2() -> Family:
    config = {
        "model_type": "gpt2",
        "n_embd": 30,
        "n_layer": 2,
        "n_head": 5,
        "vocab_size": 91,
        "n_positions": 24,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return Family("gpt2", config, "causal-lm", LM_INPUTS)


def gpt_neox() -> Family:
    return _decoder(
        "gpt_neox", rotary_pct=0.5, hidden_size=24, num_attention_heads=3, hidden_dropout=0.1
    )


def opt() -> Family:
    config = {
        "model_type": "opt",
        "hidden_size": 30,
        "word_embed_proj_dim": 30,
        "ffn_dim": 46,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "vocab_size": 89,
        "max_position_embeddings": 40,
    }
    return Family("opt", config, "causal-lm", LM_INPUTS)


def bert() -> Family:
    return _encoder("bert", pad_token_id=0)


def roberta() -> Family:
    return _encoder("roberta")


def vit() -> Family:
    config = {
        "model_type": "vit",
        "hidden_size": 30,
        "intermediate_size": 46,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "image_size": 12,
        "patch_size": 4,
        "num_channels": 3,
        "num_labels": 7,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    inputs = (
        InputSpec("pixel_values", torch.float32, (4, 3, 12, 12)),
        InputSpec("labels", torch.int64, (4,)),
    )
    return Family("vit", config, "image-classification", inputs)


def t5() -> Family:
    config = {
        "model_type": "t5",
        "d_model": 26,
        "d_kv": 6,
        "d_ff": 38,
        "num_layers": 2,
        "num_heads": 3,
        "vocab_size": 79,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    inputs = (*tokens(4, 10, "input_ids"), *tokens(4, 6, "labels"))
    return Family("t5", config, "seq2seq-lm", inputs)


FAMILIES: tuple[Family, ...] = (
    llama(), qwen2(), qwen3(), mistral(), gemma2(), phi3(), gpt2(), gpt_neox(), opt(), bert(),
    roberta(), vit(), t5(),
)  # fmt: skip
