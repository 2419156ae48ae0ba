"""Cases of the zoo with experts, with state spaces, and models of plain torch."""

from __future__ import annotations

from typing import Any

from tests.model_zoo.cases import Case, Params, columns, rows, table, tokens, weights
from tests.model_zoo.specs import MESHES
from tests.model_zoo.text import DECODER, HEAD

ATTENTION: Params = (
    table("model.embed_tokens"), HEAD, weights("q_proj,k_proj,v_proj"), rows("o_proj"),
)  # fmt: skip
EXPERTS: Params = (
    ("**.experts.gate_up_proj", "[_, tp(2), _]"),
    ("**.experts.down_proj", "[_, _, tp]"),
)
IMPLEMENTATIONS = ("grouped_mm", "batched_mm", "eager")
"""Of these, the first is the default of transformers, and the last branches on data."""


def by_expert(mesh: str, data: str, mask: tuple[str, ...] = ()) -> str:
    """A spec that splits the experts over `ep`."""
    return (
        f"mesh {{ {mesh} }}\n"
        f"{tokens('input_ids', *mask, 'labels').replace('DATA', data)}\n"
        'param "**.experts.*" [ep, ...]'
    )


def _experts(
    name: str, params: Params, options: str = "", mask: tuple[str, ...] = (), **config: Any
) -> Case:
    """A mixture of experts; its load-balancing loss may count a padding `mask`."""
    by_experts = {
        "dp2 x ep2": by_expert("dp = 2 ep = 2", "dp", mask),
        "ep4": by_expert("ep = 4", "_", mask),
        "ep4 as data": by_expert("ep = 4 as data", "ep", mask),
        "dp2 x ep2 as data": by_expert("dp = 2 ep = 2", "dp*ep", mask),
    }
    config = {
        "model_type": name.split(" ")[0], **DECODER, "num_experts_per_tok": 2,
        "output_router_logits": True, **config,
    }  # fmt: skip
    return Case(
        name, "experts", config, (tokens("input_ids", *mask, "labels"),), params, "causal-lm",
        options=options, whole=("*gate.weight", "*_a_proj*", "*down_proj_bias", "*router.weight"),
        extra=by_experts,
        refused=dict.fromkeys([*MESHES, *by_experts], "SH0354") if "eager" in name else {},
    )  # fmt: skip


MIXTURES = (
    *(
        _experts(
            f"mixtral {how}", (*ATTENTION, *EXPERTS), f'experts_implementation = "{how}"',
            num_local_experts=4,
        )
        for how in IMPLEMENTATIONS
    ),
    _experts(
        "qwen2_moe",
        (
            *ATTENTION, *EXPERTS, ("**.{q,k,v}_proj.bias", "[tp]"),
            weights("shared_expert.gate_proj,shared_expert.up_proj"),
            rows("shared_expert.down_proj"),
        ),
        mask=("attention_mask",), num_experts=4, moe_intermediate_size=12,
        shared_expert_intermediate_size=20,
    ),
    _experts("olmoe", (*ATTENTION, *EXPERTS), num_experts=4),
    _experts("qwen3_moe", (*ATTENTION, *EXPERTS), num_experts=4, moe_intermediate_size=12),
    _experts(
        "gpt_oss",
        (
            *ATTENTION, ("**.{q,k,v}_proj.bias", "[tp]"), ("**.sinks", "[tp]"),
            ("**.experts.gate_up_proj", "[_, _, tp]"), ("**.experts.gate_up_proj_bias", "[_, tp]"),
            ("**.experts.down_proj", "[_, tp, _]"),
        ),
        num_local_experts=4, head_dim=6, sliding_window=7,
    ),
    _experts(
        "deepseek_v3",
        (
            table("model.embed_tokens"), HEAD, weights("q_b_proj,kv_b_proj,gate_proj,up_proj"),
            rows("o_proj,down_proj"), *EXPERTS,
        ),
        num_key_value_heads=4, n_routed_experts=4, moe_intermediate_size=12, q_lora_rank=12,
        kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=6,
        first_k_dense_replace=1, n_group=2, topk_group=1,
    ),
)  # fmt: skip

MAMBA = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "state_size": 4,
    "vocab_size": 61,
    "conv_kernel": 4,
    "expand": 2,
}
STATE_SPACES = (
    Case(
        "mamba", "state space",
        {"model_type": "mamba", **MAMBA, "time_step_rank": 3},
        (tokens("input_ids", "labels"),),
        (
            table("backbone.embeddings"), ("**.in_proj.weight", "[tp(2), _]"),
            columns("conv1d,dt_proj"), ("**.{A_log,D}", "[tp, ...]"), rows("x_proj,out_proj"),
        ),
        "causal-lm",
    ),
    Case(
        "mamba2", "state space",
        {
            "model_type": "mamba2", **MAMBA, "num_heads": 8, "head_dim": 6, "n_groups": 2,
            "chunk_size": 4,
        },
        (tokens("input_ids", "labels"),),
        (
            table("backbone.embeddings"), HEAD, ("**.in_proj.weight", "[tp(6, 6, 1, 1, 1), _]"),
            ("**.conv1d.{weight,bias}", "[tp(6, 1, 1), ...]"), ("**.{A_log,D,dt_bias}", "[tp]"),
            rows("out_proj"),
        ),
        "causal-lm",
    ),
)  # fmt: skip

HYBRIDS = (
    Case(
        "qwen3_5", "hybrid",
        {
            "model_type": "qwen3_5",
            "text_config": {
                **DECODER, "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                "linear_key_head_dim": 6, "linear_value_head_dim": 6,
                "layer_types": ["linear_attention", "full_attention"],
            },
        },
        (tokens("input_ids", "labels"),),
        (
            *ATTENTION, weights("gate_proj,up_proj"), rows("down_proj,linear_attn.out_proj"),
            ("**.linear_attn.{in_proj_qkv,conv1d}.weight", "[tp(1, 1, 2), ...]"),
            weights("linear_attn.in_proj_z,linear_attn.in_proj_b,linear_attn.in_proj_a"),
            ("**.linear_attn.{A_log,dt_bias}", "[tp]"),
        ),
        "causal-lm",
    ),
)  # fmt: skip

IMAGES = "input x : f32[4, 3, 16, 12] [DATA, ...]"
CLASSES = "input labels : i64[4] below 5 [DATA]"
CLASSES_WHOLE = "input labels : i64[2] below 5 [_]"


def by_height(height: int, labels: str) -> str:
    """A spec that splits the height of the images over 4."""
    return f"mesh {{ h = 4 as data }}\ninput x : f32[2, 3, {height}, 12] [_, _, h, _]\n{labels}"


PLAIN = (
    Case(
        "nn.Transformer", "torch", "models.py:transformer",
        (
            "input source : i64[4, 7] below 31 [DATA, _]",
            "input target : i64[4, 6] below 31 [DATA, _]",
        ),
        (
            ("**.in_proj_{weight,bias}", "[tp(3), ...]"), columns("linear1"),
            rows("out_proj,linear2"), weights("embed"), table("head"),
        ),
    ),
    Case(
        "residual net", "torch", "models.py:residual", (IMAGES, CLASSES),
        (
            ("blocks.*.conv1.weight", "[tp, ...]"),
            ("blocks.*.norm1.{weight,bias}", "[tp]"),
            ("blocks.*.conv2.weight", "[_, tp, _, _]"),
        ),
        whole=("stem.*", "head.*", "*.skip.*"),
        extra={
            "height 16 over 4": by_height(16, CLASSES_WHOLE),
            "height 30 over 4": by_height(30, CLASSES_WHOLE),
        },
    ),
    Case(
        "U-Net", "torch", "models.py:unet",
        (IMAGES, "input labels : i64[4, 16, 12] below 5 [DATA, ...]"),
        (("**.conv1.weight", "[tp, ...]"), ("**.conv2.weight", "[_, tp, _, _]")),
        whole=("head.*", "up.*"),
        extra={
            "height 16 over 4": by_height(16, "input labels : i64[2, 16, 12] below 5 [_, h, _]"),
            "height 30 over 4": by_height(30, "input labels : i64[2, 30, 12] below 5 [_, h, _]"),
        },
    ),
    Case(
        "einsum", "torch", "models.py:functional",
        ("input x : f32[4, 10, 12] [DATA, ...]", "input y : f32[4, 10, 12] [DATA, ...]"),
        (
            ("wqkv", "[_, _, tp, _]"), ("wo", "[tp, ...]"), ("w1", "[_, tp]"), ("w2", "[tp, _]"),
        ),
    ),
)  # fmt: skip
