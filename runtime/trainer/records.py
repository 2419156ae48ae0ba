"""What a step gave, and the line that is written of it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Done:
    """What a step gave: the loss and the norm of the gradients before clipping.

    Attributes:
        skipped: the gradients were not finite, and the next loss is multiplied by less.
    """

    loss: float | None = None
    norm: float | None = None
    skipped: bool = False

    @property
    def stepped(self) -> bool:
        """Whether the parameters were changed."""
        found = (self.loss, self.norm)
        return all(x is not None and math.isfinite(x) for x in found)


@dataclass(frozen=True, slots=True)
class Record:
    """One step: `loss` and `grad_norm` are None for a model without a loss.

    Where one of them is not finite, the step changed no parameter.

    Attributes:
        lr: the learning rate of the step, of the first group of parameters.
        skipped: the gradients were not finite, and the next loss is multiplied by less.
        eval_loss: the mean loss of an evaluation after the step.
        exposed_s: of the step's time what this rank spent waiting for others, see `Waits`.
        peak_bytes: the most memory of this process within the step, see `StepMemory`.
        mfu: the part of the step's time that the model's products take at the peak of all devices;
            None where no peak is stated.
    """

    step: int
    loss: float | None
    grad_norm: float | None
    lr: float
    step_s: float
    tokens_per_s: float
    exposed_s: float = 0.0
    peak_bytes: int = 0
    mfu: float | None = None
    skipped: bool = False
    eval_loss: float | None = None

    @property
    def not_finite(self) -> dict[str, str]:
        """What is not finite, in words: `nan`, `inf` or `-inf`."""
        found = {"loss": self.loss, "grad_norm": self.grad_norm}
        return {k: str(v) for k, v in found.items() if v is not None and not math.isfinite(v)}

    def as_json(self) -> dict[str, object]:
        """The line that `run` prints; a number that JSON cannot hold is null and said apart."""
        wrong = self.not_finite
        line: dict[str, object] = {
            "step": self.step,
            "loss": None if "loss" in wrong else self.loss,
            "grad_norm": None if "grad_norm" in wrong else self.grad_norm,
            "lr": self.lr,
            "step_s": round(self.step_s, 6),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "exposed_s": round(self.exposed_s, 6),
            "peak_bytes": self.peak_bytes,
        }
        if self.mfu is not None:
            line["mfu"] = float(f"{self.mfu:.4g}")
        if self.eval_loss is not None:
            line["eval_loss"] = self.eval_loss if math.isfinite(self.eval_loss) else None
        if wrong:
            line["not_finite"] = wrong
        return {**line, "skipped": True} if self.skipped else line
