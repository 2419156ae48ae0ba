"""Cases of the zoo that read and write text."""

from __future__ import annotations

from typing import Any

from tests.model_zoo.cases import Case, Params, columns, rows, table, tokens, weights

DECODER = {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 61,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
SEQ2SEQ = {
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 36,
    "decoder_ffn_dim": 36,
    "vocab_size": 61,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
GPT = {
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 61,
    "n_positions": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

LLAMA: Params = (
    table("model.embed_tokens"),
    weights("q_proj,k_proj,v_proj,gate_proj,up_proj"),
    rows("o_proj,down_proj"),
)
BIASED: Params = (
    table("model.embed_tokens"),
    weights("gate_proj,up_proj"),
    columns("q_proj,k_proj,v_proj"),
    rows("o_proj,down_proj"),
)
HEAD = table("lm_head")
BERT: Params = (
    ("**.word_embeddings.weight", "[tp, _]"),
    columns("query,key,value"),
    columns("intermediate.dense"),
    rows("output.dense"),
)
BART: Params = (
    ("model.shared.weight", "[tp, _]"),
    columns("q_proj,k_proj,v_proj,fc1"),
    rows("out_proj,fc2"),
)


def _decoder(name: str, params: Params, **changes: Any) -> Case:
    """A causal language model."""
    config = {"model_type": name, **DECODER, **changes}
    return Case(name, "decoder", config, (tokens("input_ids", "labels"),), params, "causal-lm")


def _gpt(name: str, config: dict[str, Any], params: Params) -> Case:
    """A causal language model with a configuration of its own."""
    config = {"model_type": name, "vocab_size": 61, **config}
    return Case(name, "decoder", config, (tokens("input_ids", "labels"),), params, "causal-lm")


def _encoder(name: str, params: Params, **changes: Any) -> Case:
    """A masked language model."""
    inputs = (tokens("input_ids", "attention_mask", "labels"),)
    config = {"model_type": name, **ENCODER, **changes}
    return Case(name, "encoder", config, inputs, params, "masked-lm")


def _seq2seq(name: str, params: Params, config: dict[str, Any]) -> Case:
    """An encoder with a decoder."""
    inputs = (tokens("input_ids"), tokens("labels", length=6))
    config = {"model_type": name, **config}
    return Case(name, "encoder-decoder", config, inputs, params, "seq2seq-lm")


DECODERS = (
    _decoder("llama", (*LLAMA, HEAD)),
    _decoder("mistral", (*LLAMA, HEAD), sliding_window=7),
    _decoder("qwen2", BIASED, tie_word_embeddings=True),
    _decoder("qwen3", (*LLAMA, HEAD), head_dim=8),
    _decoder("gemma", LLAMA, head_dim=8),
    _decoder("gemma2", LLAMA, head_dim=8, sliding_window=7, query_pre_attn_scalar=8),
    _decoder(
        "phi",
        (
            table("model.embed_tokens"), ("lm_head.*", "[tp, ...]"),
            columns("q_proj,k_proj,v_proj,fc1"), rows("dense,fc2"),
        ),
        hidden_size=32,
    ),
    _decoder(
        "phi3",
        (
            table("model.embed_tokens"), HEAD, ("**.qkv_proj.weight", "[tp(2, 1, 1), _]"),
            ("**.gate_up_proj.weight", "[tp(2), _]"), rows("o_proj,down_proj"),
        ),
    ),
    _gpt(
        "gpt2", GPT,
        (
            table("transformer.wte"), ("**.c_attn.weight", "[_, tp(3)]"),
            ("**.c_attn.bias", "[tp(3)]"), ("**.c_fc.weight", "[_, tp]"),
            ("**.c_fc.bias", "[tp]"), ("**.c_proj.weight", "[tp, _]"),
        ),
    ),
    _decoder(
        "gpt_neox",
        (
            table("gpt_neox.embed_in"), HEAD, columns("query_key_value,dense_h_to_4h"),
            rows("attention.dense,dense_4h_to_h"),
        ),
        rotary_pct=0.5,
    ),
    _gpt(
        "gptj", {**GPT, "rotary_dim": 4},
        (
            table("transformer.wte"), ("lm_head.*", "[tp, ...]"),
            weights("q_proj,k_proj,v_proj"), columns("fc_in"), rows("out_proj,fc_out"),
        ),
    ),
    _gpt(
        "opt",
        {
            "hidden_size": 24, "word_embed_proj_dim": 24, "ffn_dim": 36, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 40,
        },
        (
            table("model.decoder.embed_tokens"), columns("q_proj,k_proj,v_proj,fc1"),
            rows("out_proj,fc2"),
        ),
    ),
    _gpt(
        "bloom", {"hidden_size": 24, "n_layer": 2, "n_head": 4},
        (
            table("transformer.word_embeddings"), columns("query_key_value,dense_h_to_4h"),
            rows("self_attention.dense,dense_4h_to_h"),
        ),
    ),
    _gpt(
        "falcon",
        {
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_kv_heads": 2, "new_decoder_architecture": True,
        },
        (
            table("transformer.word_embeddings"), weights("query_key_value,dense_h_to_4h"),
            rows("self_attention.dense,dense_4h_to_h"),
        ),
    ),
    _decoder("stablelm", (*LLAMA, HEAD)),
    _decoder("cohere", LLAMA),
    _decoder("olmo2", (*LLAMA, HEAD)),
    _decoder(
        "starcoder2",
        (
            table("model.embed_tokens"), columns("q_proj,k_proj,v_proj,c_fc"),
            rows("o_proj,c_proj"),
        ),
    ),
    _decoder("granite", (*LLAMA, HEAD)),
)  # fmt: skip

ENCODERS = (
    _encoder("bert", BERT),
    _encoder("roberta", BERT, pad_token_id=1),
    Case(
        "distilbert", "encoder",
        {
            "model_type": "distilbert", "dim": 24, "hidden_dim": 36, "n_layers": 2, "n_heads": 4,
            "vocab_size": 61, "max_position_embeddings": 40,
        },
        (tokens("input_ids", "attention_mask", "labels"),),
        (
            ("**.word_embeddings.weight", "[tp, _]"), columns("q_lin,k_lin,v_lin,lin1"),
            rows("out_lin,lin2"),
        ),
        "masked-lm",
    ),
    _encoder("electra", BERT, embedding_size=16),
    _encoder(
        "albert",
        (
            ("**.word_embeddings.weight", "[tp, _]"), columns("query,key,value,ffn"),
            rows("attention.dense,ffn_output"),
        ),
        embedding_size=16,
    ),
    _encoder(
        "deberta-v2",
        (
            ("**.word_embeddings.weight", "[tp, _]"),
            columns("query_proj,key_proj,value_proj,intermediate.dense"),
            ("**.layer.*.{attention.output,output}.dense.weight", "[_, tp]"),
        ),
        relative_attention=True, position_buckets=4, norm_rel_ebd="layer_norm",
        share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
        type_vocab_size=0,
    ),
    _encoder(
        "modernbert",
        (
            table("**.tok_embeddings"), ("**.Wqkv.weight", "[tp(3), _]"),
            ("**.Wi.weight", "[tp(2), _]"), rows("Wo"),
        ),
        global_attn_every_n_layers=2, local_attention=6, cls_token_id=1, sep_token_id=2,
    ),
)  # fmt: skip

ENCODER_DECODERS = (
    _seq2seq(
        "t5",
        (
            table("shared"), weights("q,k,v,wi"), rows("o,wo"),
            ("**.relative_attention_bias.weight", "[_, tp]"),
        ),
        {
            "d_model": 24, "d_kv": 6, "d_ff": 36, "num_layers": 2, "num_heads": 4,
            "vocab_size": 61, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
        },
    ),
    _seq2seq("bart", BART, SEQ2SEQ),
    _seq2seq("pegasus", BART, SEQ2SEQ),
    _seq2seq("marian", BART, SEQ2SEQ),
)  # fmt: skip

TEXT = (*DECODERS, *ENCODERS, *ENCODER_DECODERS)
