"""What a batch is, and the inputs that data can give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

Batch = Mapping[str, object]
"""Tensors by dotted input name, and whatever else the model is called with."""

BYTES = 256
IDS, LABELS = "input_ids", "labels"

Encode = Callable[[str], Sequence[int]]
"""A tokenizer: the ids of a text."""


Roles = Mapping[str, str]
"""What an input is, `input_ids` or `labels`, by its name, where its name does not say it."""

NO_ROLES: Roles = {}


class Wanted(Protocol):
    """An input as the model takes it: its dotted name, and the shape and type of a whole batch."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
