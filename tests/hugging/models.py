"""Tiny Hugging Face models, saved into local directories as their makers do."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

SIZES = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}


def build(name: str) -> transformers.PreTrainedModel:
    """A model with random weights."""
    torch.manual_seed(5)
    if name == "llama":
        config = transformers.LlamaConfig(
            vocab_size=31, hidden_size=12, intermediate_size=20, dtype="bfloat16", **SIZES
        )
        return transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    if name == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=31, n_embd=12, n_head=2, n_layer=2, n_positions=8, n_inner=20,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)
    if name == "t5":
        config = transformers.T5Config(
            vocab_size=31, d_model=12, d_kv=4, d_ff=20, num_layers=1, num_heads=2, dropout_rate=0.0,
            decoder_start_token_id=0,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config)
    config = transformers.MixtralConfig(
        vocab_size=31, hidden_size=12, intermediate_size=20, num_local_experts=4, **SIZES
    )
    return transformers.MixtralForCausalLM(config)


def save(name: str, folder: Path) -> None:
    """The model's directory, with settings for generation and a tokenizer."""
    model = build(name)
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    model.save_pretrained(folder, max_shard_size="5kB")
    words = {"[UNK]": 0, **{f"w{number}": number for number in range(1, 31)}}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    fast.save_pretrained(folder)
