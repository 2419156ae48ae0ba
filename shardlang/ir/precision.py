"""The types of a step beside those that the model itself has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Precision:
    """What a spec states of types; None where it states nothing.

    Attributes:
        reduce: in which gradients of narrower parameters are summed, over devices and microbatches.
        master: of the master weights of narrower parameters.
    """

    reduce: torch.dtype | None = None
    master: torch.dtype | None = None


OWN_TYPES = Precision()
"""Where a spec states nothing of types."""


def wider(dtype: torch.dtype, other: torch.dtype | None) -> torch.dtype:
    """The other type, where the first one is a narrower floating type; else the first."""
    narrow = other is not None and dtype.is_floating_point and dtype.itemsize < other.itemsize
    return other if narrow and other is not None else dtype
