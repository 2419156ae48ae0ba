"""The types of a step beside those that the model itself has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


FIRST_SCALE = 2.0**16
"""With what a dynamic factor begins."""

LARGEST_SCALE = 2.0**127
"""The largest factor of a loss: a power of two that f32 holds."""


@dataclass(frozen=True, slots=True)
class LossScale:
    """By what the loss is multiplied before the backward, so that small gradients do not vanish.

    Attributes:
        first: the factor of the first step.
        dynamic: whether it follows what overflows.
    """

    first: float = FIRST_SCALE
    dynamic: bool = True


@dataclass(frozen=True, slots=True)
class Precision:
    """What a spec states of types; None where it states nothing.

    Attributes:
        compute: to which wider parameters and inputs are cast before the model computes with them.
        reduce: in which gradients of narrower parameters are summed, over devices and microbatches.
        master: of the master weights of narrower parameters.
        loss_scale: by what the loss is multiplied.
    """

    compute: torch.dtype | None = None
    reduce: torch.dtype | None = None
    master: torch.dtype | None = None
    loss_scale: LossScale | None = None

    @property
    def updated(self) -> str:
        """What an optimizer has to know of, as the spec states it; empty if nothing."""
        if self.loss_scale is not None:
            return "loss_scale"
        return "master" if self.master is not None else ""


OWN_TYPES = Precision()
"""Where a spec states nothing of types."""


def wider(dtype: torch.dtype, other: torch.dtype | None) -> torch.dtype:
    """The other type, where the first one is a narrower floating type; else the first."""
    narrow = other is not None and dtype.is_floating_point and dtype.itemsize < other.itemsize
    return other if narrow and other is not None else dtype
