"""Random inputs that are valid for a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from shardlang.capture.source import InputSpec, ModelSource

IGNORED = -100


def make_inputs(
    source: ModelSource, specs: Sequence[InputSpec], seed: int, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """One random tensor per input, the same for every mesh.

    Integers lie in the range that the model allows. Token-level labels hold ignored entries, in a
    different number per row. Masks end each row with a different number of zeros, position
    inputs count up from 0.
    """
    return {spec.name: _make(source, spec, seed).to(device) for spec in specs}


def _make(source: ModelSource, spec: InputSpec, seed: int) -> torch.Tensor:
    """A random tensor for one input."""
    generator = torch.Generator().manual_seed(_derive_seed(seed, "input", spec.name))
    shape, name = spec.shape, spec.name.split(".")[-1]
    if spec.dtype.is_floating_point or spec.dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(spec.dtype)
    if name.endswith("attention_mask") and len(shape) == 2 and spec.below is None:
        return _ragged_mask(shape).to(spec.dtype)
    if name.endswith("position_ids") and len(shape) == 2 and spec.below is None:
        return torch.arange(shape[-1]).expand(shape).to(spec.dtype).clone()
    low, high = (0, 2) if spec.dtype is torch.bool else source.integer_range(spec)
    drawn = torch.randint(low, max(high, low + 1), shape, generator=generator)
    if source.ignores_labels(spec):
        drawn = _ignore_some(drawn)
    return drawn.to(spec.dtype)


def _ragged_mask(shape: tuple[int, ...]) -> torch.Tensor:
    """Ones, with a number of zeros at the end of row r that grows with r. Shape `b s`."""
    rows, length = shape
    kept = length - torch.arange(rows) % max(length // 2, 1)
    return torch.arange(length)[None, :] < kept[:, None]


def _ignore_some(labels: torch.Tensor) -> torch.Tensor:
    """Labels with row r ignoring its first 2r + 1 entries, modulo the length. Shape `b s …`.

    Two entries remain in every row, and rows still differ after a model has shifted its labels.
    """
    rows, length = labels.shape[:2]
    ignored = (2 * torch.arange(rows) + 1) % max(length - 1, 1)
    mask = torch.arange(length)[None, :] < ignored[:, None]
    labels[mask] = IGNORED
    return labels


def _derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on all `parts`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
