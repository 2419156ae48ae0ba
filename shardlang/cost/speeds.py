"""How long devices compute and send at least: operations over a peak, bytes over a bandwidth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from shardlang.cost.links import slowest
from shardlang.ir.mesh import Mesh
from shardlang.ir.printed_type import dtype_name


@dataclass(frozen=True, slots=True)
class Speeds:
    """What one device does in a second at best.

    Attributes:
        peaks: operations a second by the type that is multiplied, `bf16`; one at least.
        mesh: whose axes name their links.
    """

    peaks: Mapping[str, float]
    mesh: Mesh

    def computing_s(self, flops: float, dtype: torch.dtype) -> float:
        """Seconds of products; of a type without a peak of its own at the greatest one."""
        return flops / self.peaks.get(dtype_name(dtype), max(self.peaks.values()))

    def sending_s(self, axes: Iterable[str], sent_bytes: int) -> float:
        """Seconds of what the busiest device sends in a call; none where a link is not known."""
        pace = slowest(axes, self.mesh)
        return sent_bytes / pace if pace is not None else 0.0
