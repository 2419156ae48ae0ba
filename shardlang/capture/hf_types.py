"""What is read of the objects of transformers: configurations, models, tokenizers, caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn


class Config(Protocol):
    """A configuration; what only some have is read with `getattr`."""

    model_type: str
    architectures: list[str] | None
    num_labels: int
    vocab_size: int
    sub_configs: Mapping[str, type]
    _experts_implementation: str | None

    def get_text_config(self, decoder: bool = False) -> Config: ...
    def to_dict(self) -> dict[str, object]: ...


class ConfigClass(Protocol):
    """The class of a configuration."""

    def from_dict(self, settings: Mapping[str, object]) -> Config: ...


class ModelClass(Protocol):
    """The class of a model."""

    __name__: str

    def _from_config(self, config: Config, **options: object) -> nn.Module: ...


Models: TypeAlias = "Mapping[type, ModelClass | Sequence[ModelClass]]"
"""From the classes of configurations to those of models, for one task."""


@runtime_checkable
class Pretrained(Protocol):
    """A model that loads its own checkpoints."""

    @property
    def config(self) -> _Stored: ...
    @property
    def dtype(self) -> object: ...
    def from_pretrained(self, folder: Path, **options: object) -> nn.Module: ...


@runtime_checkable
class Generating(Protocol):
    """A model that has settings for the generation of text."""

    @property
    def generation_config(self) -> _Written: ...


class _Written(Protocol):
    """A configuration that can be written."""

    def to_json_string(self) -> str: ...


class _Stored(_Written, Protocol):
    """The configuration of a checkpoint."""

    dtype: object
    architectures: list[str] | None


class Renaming(Protocol):
    """A rule that turns the name of a stored tensor into one of the model."""

    def rename_source_key(self, name: str) -> tuple[str, str | None]: ...


@runtime_checkable
class Converter(Renaming, Protocol):
    """A rule that computes one tensor of the model, or several, from stored ones."""

    target_patterns: Sequence[str]
    operations: Sequence[object]

    def add_tensor(self, target: str, key: str, pattern: str, tensor: Tensor) -> object: ...
    def convert(
        self, name: str, *, model: object, config: object
    ) -> Mapping[str, Tensor | Sequence[Tensor]]: ...


class HfTokenizer(Protocol):
    """A tokenizer."""

    def __call__(
        self, text: str, *, add_special_tokens: bool, verbose: bool
    ) -> Mapping[str, Sequence[int]]: ...


class CacheLayer(Protocol):
    """The keys and values of one layer."""

    keys: object
    values: object
    is_initialized: bool
    dtype: torch.dtype
    device: torch.device
    cumulative_length: int
    """How many tokens it has seen, of layers that do not keep them all."""
    sliding_window: int
    """How many tokens, of such layers, a token sees."""
    _sliding_window_tensor: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...


class Cache(Protocol):
    """A key-value cache."""

    layers: list[CacheLayer]


class Experts(Protocol):
    """A module of experts; some have no `post_expert_norm`."""

    has_gate: bool
    has_bias: bool
    is_transposed: bool

    def _apply_gate(self, x: Tensor) -> Tensor: ...
    def act_fn(self, x: Tensor) -> Tensor: ...
    def post_expert_norm(self, x: Tensor) -> Tensor: ...
