"""Make a small random Llama with a tokenizer, in a folder as Hugging Face keeps them.

    python examples/finetune/make_model.py FOLDER

It stands in for a model that was downloaded: `config.json`, `model.safetensors`, `tokenizer.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = Path(__file__).parents[1] / "llama" / "text.txt"
END = "<|end|>"


def make(folder: Path) -> None:
    """Write model and tokenizer."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=[END], initial_alphabet=letters)
    inner.train([str(TEXT)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
