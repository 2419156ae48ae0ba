"""Cases of the zoo that read images and sound."""

from __future__ import annotations

from typing import Any

from tests.model_zoo.cases import Case, Params, columns, rows, tokens, weights
from tests.model_zoo.specs import MESHES
from tests.model_zoo.text import BART, SEQ2SEQ

VIT = {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 7,
}
VIT_PARAMS: Params = (columns("q_proj,k_proj,v_proj,fc1"), rows("o_proj,fc2"))


def images(size: int) -> tuple[str, ...]:
    """The inputs of an image classifier."""
    return (
        f"input pixel_values : f32[4, 3, {size}, {size}] [DATA, ...]",
        "input labels : i64[4] [DATA]",
    )


def _vision(name: str, size: int, params: Params, **config: Any) -> Case:
    """An image classifier with 7 classes."""
    config = {"model_type": name, "num_labels": 7, **config}
    return Case(
        name, "vision", config, images(size), params, "image-classification",
        whole=(
            "*patch_embeddings*", "*token", "classifier.*", "*dwconv*", "*downsampling*",
            "*embedder*", "*shortcut*",
        ),
    )  # fmt: skip


VISION = (
    _vision("vit", 12, VIT_PARAMS, **VIT),
    _vision("deit", 12, VIT_PARAMS, **VIT),
    _vision(
        "swin", 16,
        (
            *VIT_PARAMS, weights("reduction"),
            ("**.relative_position_bias_table", "[_, tp]"),
        ),
        image_size=16, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=4,
    ),
    _vision(
        "convnext", 16, (columns("pwconv1"), rows("pwconv2")),
        hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, patch_size=2, image_size=16,
    ),
    _vision(
        "resnet", 16,
        (
            ("**.layers.*.layer.0.convolution.weight", "[tp, ...]"),
            ("**.layers.*.layer.0.normalization.{weight,bias,running_mean,running_var}", "[tp]"),
            ("**.layers.*.layer.1.convolution.weight", "[_, tp, _, _]"),
        ),
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic",
    ),
)  # fmt: skip

WAV2VEC2 = {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "conv_dim": [8, 8],
    "conv_stride": [4, 2],
    "conv_kernel": [8, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 17,
    "classifier_proj_size": 12,
    "num_labels": 7,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}

SPEECH = (
    Case(
        "whisper", "speech",
        {
            "model_type": "whisper", **SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 12,
            "max_target_positions": 16, "suppress_tokens": None, "begin_suppress_tokens": None,
        },
        ("input input_features : f32[4, 8, 24] [DATA, ...]", tokens("labels", length=6)),
        (("model.decoder.embed_tokens.weight", "[tp, _]"), columns("q_proj,v_proj,fc1"),
         weights("k_proj"), *BART[2:]),
        "speech-seq2seq", whole=("*conv*", "*embed_positions*"),
    ),
    Case(
        "speech_to_text", "speech",
        {
            "model_type": "speech_to_text", **SEQ2SEQ, "input_feat_per_channel": 8,
            "conv_channels": 16, "max_source_positions": 40, "max_target_positions": 16,
        },
        ("input input_features : f32[4, 24, 8] [DATA, ...]", tokens("labels", length=6)),
        (("model.decoder.embed_tokens.weight", "[tp, _]"), BART[1], *BART[2:]),
        "speech-seq2seq", whole=("*conv*", "*embed_positions*"),
    ),
    *(
        Case(
            name, "speech", {"model_type": "wav2vec2", **WAV2VEC2},
            ("input input_values : f32[4, 120] [DATA, _]", f"input labels : i64[4{more}"),
            (columns("q_proj,k_proj,v_proj,intermediate_dense"), rows("out_proj,output_dense")),
            task, refused=refused,
            whole=("*conv*", "*feature_projection*", "lm_head.*", "projector.*", "classifier.*"),
        )
        for name, task, more, refused in (
            ("wav2vec2", "audio-classification", "] [DATA]", {}),
            ("wav2vec2 ctc", "ctc", ", 5] [DATA, _]", dict.fromkeys(MESHES, "SH0354")),
        )
    ),
)  # fmt: skip
