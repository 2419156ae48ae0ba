"""Inputs of sensible shapes: of Hugging Face models by name, of others from their examples."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from shardlang.capture import CaptureError, HfSource, InputSpec, ModelSource
from shardlang.capture.errors import first_line, model_line
from shardlang.compiler.driver import DTYPES
from shardlang.init.axes import Roles
from shardlang.runtime.data import Batch

SEQ = 128
"""The default number of tokens in a sequence."""

FRAMES = 32
"""The number of frames in a shard of sound."""

_TOKEN_TASKS = ("causal-lm", "masked-lm", "seq2seq-lm", "speech-seq2seq", "token-classification")
_TOKEN_CLASSES = (
    "ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration",
    "ForTokenClassification", "MTModel",
)  # fmt: skip
_READS_BOTH_WAYS = (
    "masked-lm", "sequence-classification", "token-classification", "question-answering",
    "multiple-choice",
)  # fmt: skip
_INPUT = re.compile(r"([\w.]+)\s*:\s*(\w+)\s*\[([\d\s,]*)\]\s*(?:below\s+(\d+))?")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Asked-for sizes; None where the model decides."""

    batch: int | None = None
    seq: int | None = None


def parse_input(text: str) -> InputSpec:
    """The input that `NAME:dtype[shape]`, with `below N` for integers, describes.

    Raises:
        CaptureError: the text is not of that form.
    """
    found = _INPUT.fullmatch(text.strip())
    if found is None or found[2] not in DTYPES:
        raise CaptureError(
            "SH0353",
            f"`{text}` describes no input",
            help='write `--input "x:f32[8, 64]"`, or `--input "ids:i64[8, 64] below 100"`',
        )
    shape = tuple(int(size) for size in found[3].split(",") if size.strip())
    return InputSpec(found[1], DTYPES[found[2]], shape, int(found[4]) if found[4] else None)


def inputs_of(
    source: ModelSource, task: str | None, roles: Roles, sizes: Sizes, given: Iterable[InputSpec]
) -> tuple[InputSpec, ...]:
    """The model's inputs; `given` ones take the place of those of their name.

    Raises:
        CaptureError: nothing says what an input is.
    """
    asked = {spec.name: spec for spec in given}
    if isinstance(source, HfSource):
        found = _Hf(source, task, roles, sizes).inputs(asked)
    else:
        found = _from_examples(source, asked)
    merged = {**{spec.name: spec for spec in found}, **asked}
    source.check_inputs(merged)
    return tuple(merged.values())


def _from_examples(source: ModelSource, asked: dict[str, InputSpec]) -> list[InputSpec]:
    """The inputs of the model's own first batch."""
    batch = _first_batch(source)
    if batch is None:
        given = {name.split(".")[0] for name in asked}
        missing = [name for name in required(source) if name not in given]
        if missing:
            raise _unknown(missing[0])
        return []
    return [
        InputSpec(
            name, value.dtype, tuple(value.shape),
            int(value.max()) + 1 if _counts(value) else None,
        )
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    ]  # fmt: skip


def _first_batch(source: ModelSource) -> Batch | None:
    """The model's own first batch; None where it brings none along."""
    try:
        batches = source.batches(0)
        return None if batches is None else _checked(next(batches))
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            "SH0353",
            f"the model's own batches cannot be made: {type(error).__name__}: {first_line(error)}",
            help="fix `batches(seed)`, which yields dicts of tensors by input name; or describe"
            ' each input, as in `--input "x:f32[8, 64]"`',
            source=model_line(error),
        ) from error


def _checked(batch: object) -> Batch:
    if isinstance(batch, Mapping):
        return batch
    raise TypeError(f"a batch is a dict, and the first one is a `{type(batch).__name__}`")


def _counts(value: torch.Tensor) -> bool:
    kind = value.dtype
    return not (kind.is_floating_point or kind.is_complex or kind is torch.bool) and bool(
        value.numel()
    )


def required(source: ModelSource) -> list[str]:
    """The arguments without which the model cannot be called."""
    kinds = source.signature.parameters.values()
    return [
        p.name
        for p in kinds
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]


def _unknown(name: str) -> CaptureError:
    return CaptureError(
        "SH0353",
        f"nothing says what the model's input `{name}` is",
        help=f'add `--input "{name}:f32[8, 64]"`, or give the file a `batches(seed)`',
    )


class _Hf:
    """The inputs of one Hugging Face model."""

    def __init__(self, source: HfSource, task: str | None, roles: Roles, sizes: Sizes) -> None:
        self.source, self.task = source, task
        self.config = source.config()
        self.module = source.deferred.module
        self.names = source.forward_names
        self.batch = sizes.batch or 2 * max(roles.shards, 1)
        self.seq = sizes.seq or self._seq()

    def inputs(self, asked: dict[str, InputSpec]) -> list[InputSpec]:
        main = str(getattr(self.module, "main_input_name", "input_ids"))
        wanted = [main if main in self.names else self.names[0], *required(self.source)]
        if main == "input_ids" and self.task in _READS_BOTH_WAYS:
            wanted.append("attention_mask")
        if getattr(self.config, "is_encoder_decoder", False) and not self._labels():
            wanted.append("decoder_input_ids")
        wanted = [name for name in dict.fromkeys(wanted) if name in self.names]
        found = [asked.get(name) or self._make(name) for name in wanted]
        return [*found, *self._labels()]

    def _make(self, name: str) -> InputSpec:
        makers: dict[str, Callable[[], tuple[int, ...]]] = {
            "pixel_values": self._pixels,
            "pixel_values_videos": self._pixels,
            "input_values": self._sound,
            "input_features": self._features,
        }
        if name in makers:
            return InputSpec(name, self._dtype(), (self.batch, *makers[name]()))
        if name.endswith("input_ids") or name.endswith("attention_mask"):
            choices = (4,) if self.task == "multiple-choice" else ()
            return InputSpec(name, torch.int64, (self.batch, *choices, self.seq))
        raise _unknown(name)

    def _dtype(self) -> torch.dtype:
        """The type of the model's own parameters."""
        kinds = (p.dtype for p in self.module.parameters() if p.dtype.is_floating_point)
        return next(kinds, torch.float32)

    def _labels(self) -> list[InputSpec]:
        """What the loss compares with."""
        if {"start_positions", "end_positions"} <= set(self.names):
            ends = ("start_positions", "end_positions")
            return [InputSpec(n, torch.int64, (self.batch,), self.seq) for n in ends]
        kind = type(self.module).__name__
        if "labels" not in self.names or self.task == "base":
            return []
        if self.task in _TOKEN_TASKS or (self.task is None and kind.endswith(_TOKEN_CLASSES)):
            below = self.config.num_labels if self.task == "token-classification" else None
            return [InputSpec("labels", torch.int64, (self.batch, self._label_seq()), below)]
        if kind.endswith("ForCTC"):
            below = int(self.config.vocab_size)
            return [InputSpec("labels", torch.int64, (self.batch, FRAMES // 4), below)]
        if self.task == "multiple-choice":
            return [InputSpec("labels", torch.int64, (self.batch,), 4)]
        if kind.endswith("Classification"):
            below = int(self.config.num_labels)
            return [InputSpec("labels", torch.int64, (self.batch,), below)]
        return []

    def _label_seq(self) -> int:
        limit = getattr(self.config, "max_target_positions", None)
        return min(self.seq, int(limit)) if limit else self.seq

    def _seq(self) -> int:
        """As many tokens as the positions allow, a power of two, at most `SEQ`."""
        text = self.source.text_config
        names = ("max_position_embeddings", "n_positions", "n_ctx", "max_target_positions")
        limits = [getattr(text, name, None) for name in names]
        known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
        room = min([SEQ, *known])
        if known and room < SEQ + 4:
            pad = getattr(text, "pad_token_id", None)
            room -= 1 + (pad if isinstance(pad, int) and 0 < pad < 4 else 0)
        return 1 << max(min(room, SEQ).bit_length() - 1, 1)

    def _part(self, name: str) -> object:
        """An attribute of the config, or of its part for images or sound."""
        for part in ("", "vision_config", "audio_config", "backbone_config", "encoder"):
            config = getattr(self.config, part, None) if part else self.config
            value: object = getattr(config, name, None)
            if value is not None:
                return value
        return None

    def _number(self, *names: str) -> int | None:
        """The first of some attributes that is a number other than 0."""
        found = map(self._part, names)
        return next((int(x) for x in found if isinstance(x, (int, float)) and x), None)

    def _pixels(self) -> tuple[int, ...]:
        channels = self._number("num_channels", "in_channels") or 3
        frames = self._number("num_frames")
        return (*((frames,) if frames else ()), channels, *_plane(self._part("image_size")))

    def _sound(self) -> tuple[int, ...]:
        """Raw samples of `FRAMES` frames, or a spectrogram where the config has its size."""
        bins, length = self._number("num_mel_bins"), self._number("max_length")
        strides = self._part("conv_stride")
        if bins and length and strides is None:
            return length, bins
        return (
            FRAMES * (math.prod(strides) if isinstance(strides, Sequence) and strides else 320),
        )

    def _features(self) -> tuple[int, ...]:
        positions, bins = self._number("max_source_positions"), self._number("num_mel_bins")
        if bins and positions:
            return bins, 2 * positions
        width = self._number("input_feat_per_channel", "feature_projection_input_dim")
        return 4 * FRAMES, width or bins or 80


def _plane(size: object) -> tuple[int, int]:
    """Height and width, which a config gives as one number, two, or by name."""
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    if isinstance(size, Sequence):
        height, width = size
        return int(height), int(width)
    side = size if isinstance(size, int) and size else 224
    return side, side
