"""Tensors of a model that share memory without being the same tensor.

What writes one of them writes both in the plain model, and a sharded model holds them apart.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from shardlang.capture.errors import CaptureError
from shardlang.ir.compat import storage_key


def check_memory(module: nn.Module) -> None:
    """Raise SH0356 for a parameter that overlaps another parameter or a buffer."""
    sharing: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        sharing.setdefault(storage_key(tensor), []).append((name, tensor))
    for group in sharing.values():
        for (name, one), (other_name, other) in itertools.combinations(group, 2):
            if isinstance(one, nn.Parameter) and overlap(one, other):
                raise _shared(name, other_name)


def overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one storage have an element in common.

    Of tensors of two dtypes, any between their first and last ones counts.
    """
    if not one.numel() or not other.numel():
        return False
    (first, last), (start, end) = _span(one), _span(other)
    if one.dtype != other.dtype:
        a, b = one.element_size(), other.element_size()
        return first * a < (end + 1) * b and start * b < (last + 1) * a
    if last < start or end < first:
        return False
    low = min(first, start)
    taken = torch.zeros(max(last, end) - low + 1, dtype=torch.bool)
    taken.as_strided(one.size(), one.stride(), first - low).fill_(True)
    return bool(taken.as_strided(other.size(), other.stride(), start - low).any())


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The first and the last element of its storage that a tensor shows."""
    first = int(tensor.storage_offset())
    steps = zip(tensor.size(), tensor.stride(), strict=True)
    return first, first + sum((size - 1) * stride for size, stride in steps)


def _shared(name: str, other: str) -> CaptureError:
    return CaptureError(
        "SH0356",
        f"the parameter `{name}` shares memory with `{other}`, and is not the same tensor",
        help="tie them by assigning the parameter itself, without `.data`, or make one of them with"
        " `.clone()`",
    )
