"""A dim that reads another: rolled, padded, cut, reversed, or a row of windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shardlang.ir.reads import Reads


def read(x: Tensor, dim: int, reads: Reads) -> Tensor:
    """A whole tensor in which the indices of `dim` are those that are read; where the dim is split,
    devices hand each other what they lack."""
    return read_here(x, dim, listed(reads), reads.fill)


def listed(reads: Reads) -> list[list[int]]:
    """The stretches as plain numbers: start, stop and step, or how many indices read nothing."""
    each = (one for run in reads.runs for one in run.stretches())
    return [[one] if isinstance(one, int) else [one.start, one.stop, one.step] for one in each]


def read_here(x: Tensor, dim: int, stretches: Sequence[Sequence[int]], fill: complex) -> Tensor:
    """What is read of a dim that is here whole."""
    return torch.cat([_taken(x, dim, stretch, fill) for stretch in stretches], dim)


def _taken(x: Tensor, dim: int, stretch: Sequence[int], fill: complex) -> Tensor:
    if len(stretch) == 1:
        return x.new_full([stretch[0] if i == dim else n for i, n in enumerate(x.shape)], fill)
    places = range(*stretch)
    low, high = min(places[0], places[-1]), max(places[0], places[-1]) + 1
    found = x[(slice(None),) * dim + (slice(low, high, abs(places.step)),)]
    return found.flip(dim) if places.step < 0 else found
