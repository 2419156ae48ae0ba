"""Differences that a proof finds: what is off, by how much, and what explains it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

TOLERANCE = 1e-9
"""Above this a difference in float64 is a bug, unless the model's conditioning explains it."""

Kind = Literal["ill-conditioned", "zero", "lost", "overflow"]
"""What explains a difference: rounding that the model amplifies; a value that is zero but for
rounding; rounding so amplified that nothing is proven; numbers that are finite in float64 alone."""


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
class Explained:
    """A difference above the tolerance that is not a fault.

    Attributes:
        change: the largest difference that a perturbation of every number by up to `perturbation`,
            relative, makes in the reference; in the unit of `error`.
    """

    name: str
    backward: bool
    error: float
    change: float
    perturbation: float
    kind: Kind

    @property
    def amplification(self) -> float:
        """How many times a relative perturbation is amplified."""
        return self.change / self.perturbation if self.perturbation else 0.0

    @property
    def beside_terms(self) -> float:
        """The difference in the unit of the terms of which the value is a sum."""
        return self.error / self.amplification if self.amplification else self.error

    def __str__(self) -> str:
        what = "the gradient of " if self.backward else ""
        if self.kind == "overflow":
            return f"{what}`{self.name}` is not finite at the model's own dtype"
        return (
            f"{what}`{self.name}` differs by {self.error:.1e}; rounding by {self.perturbation:.1e}"
            f" alone changes it by {self.change:.1e}, {self.amplification:.1e} times as much"
        )

    def to_json(self) -> dict[str, object]:
        """The measured figures."""
        return {
            "name": self.name,
            "gradient": self.backward,
            "kind": self.kind,
            "difference": number(self.error),
            "perturbation": number(self.perturbation),
            "change": number(self.change),
            "amplification": number(self.amplification),
        }


@dataclass(slots=True)
class Eager:
    """How far the untouched model, at its own dtypes, is from the reference.

    `outputs` holds max|a-b| / max|b| of each output and changed buffer; `gradients` holds
    |a-b| / |b|, in the Euclidean norm, of each parameter, and is None where none are compared.
    `tolerances` are those of the outputs and `tolerance` that of gradients: each follows the
    coarsest dtype on the way there.
    """

    outputs: dict[str, float]
    gradients: dict[str, float] | None
    tolerance: float
    tolerances: dict[str, float] = field(default_factory=dict)
    explained: list[Explained] = field(default_factory=list)

    def excess(self) -> Iterator[tuple[str, float, bool]]:
        """Name and difference of all above the tolerance, and whether it is a gradient's."""
        for name, error in self.outputs.items():
            if not error <= self.tolerances.get(name, self.tolerance):
                yield name, error, False
        for name, error in (self.gradients or {}).items():
            if not error <= self.tolerance:
                yield name, error, True

    @property
    def ok(self) -> bool:
        """Whether all differences are within the tolerance, or explained."""
        return not unexplained(self.excess(), self.explained)

    def to_json(self) -> dict[str, object]:
        """The largest errors."""
        outputs = worst(self.outputs)
        found = {"error": number(outputs.error), "worst": outputs.name}
        gradients = None if self.gradients is None else worst(self.gradients).to_json()
        tolerance = max(self.tolerance, *self.tolerances.values(), 0.0)
        return {**found, "gradients": gradients, "tolerance": tolerance}


def unexplained(excess: Iterator[tuple[str, float, bool]], why: list[Explained]) -> list[str]:
    """The names of differences that nothing explains."""
    known = {(each.name, each.backward) for each in why}
    return [name for name, _, is_gradient in excess if (name, is_gradient) not in known]


@dataclass(frozen=True, slots=True)
class Worst:
    """The largest of some errors, and whose it is."""

    error: float = 0.0
    name: str | None = None

    def to_json(self) -> dict[str, object]:
        """Both as JSON holds them."""
        return {"max_error": number(self.error), "worst": self.name}

    def __str__(self) -> str:
        return f"{self.error:.1e}"


def worst(errors: Mapping[str, float]) -> Worst:
    """The largest error, not-a-numbers first, and whose it is."""
    if not errors:
        return Worst()
    name = max(errors, key=lambda key: (errors[key] != errors[key], errors[key]))
    return Worst(errors[name], name)


def number(value: float) -> float | str:
    """A number as JSON holds it: `inf`, `-inf` and `nan` are texts there."""
    return value if math.isfinite(value) else str(value)
