"""What a proof found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 1e-9
"""Above this a difference in float64 is a bug, not rounding."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first value that differs, in the order of the computation."""

    name: str
    module: str
    source: str
    layout: str
    error: float
    backward: bool

    def __str__(self) -> str:
        what = "the gradient of " if self.backward else ""
        where = f" in `{self.module}`" if self.module else ""
        line = f" ({self.source})" if self.source else ""
        return f"{what}`{self.name}`{where}{line} {self.layout} differs by {self.error:.1e}"


@dataclass(frozen=True, slots=True)
class Eager:
    """How far the untouched model, at its own dtype, is from the reference.

    `outputs` holds max|a-b| / max|b| of each output and changed buffer; `gradients` holds
    |a-b| / |b|, in the Euclidean norm, of each parameter, and is None in eval mode.
    """

    outputs: dict[str, float]
    gradients: dict[str, float] | None
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether all differences are within the tolerance."""
        gradients = (self.gradients or {}).values()
        return self.outputs_ok and all(error <= self.tolerance for error in gradients)

    @property
    def outputs_ok(self) -> bool:
        """Whether those of outputs and buffers are."""
        return all(error <= self.tolerance for error in self.outputs.values())

    def to_json(self) -> dict[str, Any]:
        """The largest errors."""
        outputs = _worst(self.outputs)
        found = {"error": outputs["max_error"], "worst": outputs["worst"]}
        gradients = None if self.gradients is None else _worst(self.gradients)
        return {**found, "gradients": gradients, "tolerance": self.tolerance}


@dataclass(slots=True)
class Report:
    """The result of `verify`.

    An error is max|a-b| / max(max|b|, 1e-3 G), where G is the largest |gradient| of any parameter
    (for outputs: of any output). `count` is the number of trainable parameters; those that have no
    gradient on either side are listed in `unused`. `draws_apart` counts the random ops whose shards
    draw from streams of their own: the reference takes the numbers that they draw.
    """

    devices: int
    loss: dict[str, float] | None = None
    outputs: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] | None = None
    count: int = 0
    unused: list[str] = field(default_factory=list)
    eager: Eager | None = None
    first: Mismatch | None = None
    cut: list[str] = field(default_factory=list)
    draws_apart: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything agrees."""
        errors = [*self.outputs.values(), *(self.gradients or {}).values()]
        if self.loss is not None:
            errors.append(self.loss["error"])
        sound = bool(errors) and all(error <= TOLERANCE for error in errors)
        return sound and self.traced_as_eager

    @property
    def traced_as_eager(self) -> bool:
        """Whether the traced graph computes what the untouched model does."""
        return self.eager is None or self.eager.ok

    def to_json(self) -> dict[str, Any]:
        """The document of the CLI contract."""
        gradients = None
        if self.gradients is not None:
            gradients = {**_worst(self.gradients), "count": self.count, "unused": self.unused}
        return {
            "ok": self.ok,
            "devices": self.devices,
            "dtype": "float64",
            "loss": self.loss,
            "outputs": _worst(self.outputs),
            "gradients": gradients,
            "eager": None if self.eager is None else self.eager.to_json(),
            "first_difference": None if self.first is None else str(self.first),
            "cut": self.cut,
            "draws_apart": self.draws_apart,
        }


def _worst(errors: dict[str, float]) -> dict[str, Any]:
    """The largest error, not-a-numbers first, and whose it is."""
    if not errors:
        return {"max_error": 0.0, "worst": None}
    name = max(errors, key=lambda key: (errors[key] != errors[key], errors[key]))
    return {"max_error": errors[name], "worst": name}
