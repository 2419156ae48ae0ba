"""What a step computes, for its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from shardlang.runtime.data import Batch


@dataclass(frozen=True, slots=True)
class Work:
    """The model's products in a step.

    Attributes:
        at_peak_s: the seconds that they take on all devices together, at the stated peak.
        shapes: of the whole inputs, by name. A batch of other sizes is other work.
    """

    at_peak_s: float
    shapes: Mapping[str, tuple[int, ...]]

    def mfu(self, batch: Batch, step_s: float) -> float | None:
        """The model flops utilisation of a step that took so long; None for other work.

        The time at the peak over the time that it took, which for one type is model flops per
        second over the peak flops per second (Chowdhery et al., PaLM, appendix B).
        """
        return self.at_peak_s / step_s if self._is_of(batch) else None

    def _is_of(self, batch: Batch) -> bool:
        given = ((batch.get(name), shape) for name, shape in self.shapes.items())
        return all(isinstance(x, Tensor) and tuple(x.shape) == shape for x, shape in given)
