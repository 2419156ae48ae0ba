"""What a proof found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from shardlang.proof.inputs import Fed

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
    """A difference above the tolerance that is no fault.

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

    def to_json(self) -> dict[str, Any]:
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

    @property
    def outputs_ok(self) -> bool:
        """Whether those of outputs and buffers are within it."""
        return not any(not is_gradient for _, _, is_gradient in self.excess())

    def to_json(self) -> dict[str, Any]:
        """The largest errors."""
        outputs = worst(self.outputs)
        found = {"error": outputs["max_error"], "worst": outputs["worst"]}
        gradients = None if self.gradients is None else worst(self.gradients)
        tolerance = max(self.tolerance, *self.tolerances.values(), 0.0)
        return {**found, "gradients": gradients, "tolerance": tolerance}


@dataclass(slots=True)
class Report:
    """The result of `verify`.

    An error is max|a-b| / max(max|b|, 1e-3 G), where G is the largest |gradient| of any parameter
    (for outputs: of any output), and for what is zero but for rounding, by the size of the terms
    that cancel there; numbers that are not finite are compared position by position.

    Attributes:
        count: number of trainable parameters; those that have no gradient on either side are
            listed in `unused`, those whose gradient is zero everywhere in `zero`.
        not_finite: outputs and parameters whose value or gradient holds infinite or undefined
            numbers in the reference, and there alike in the program.
        not_compared: why no gradients are compared; empty where they are.
        loss_name: the result that gradients start from.
        explained: differences above the tolerance that the model's conditioning explains.
        draws_apart: number of random ops whose shards draw from streams of their own: the
            reference takes the numbers that they draw.
    """

    devices: int
    loss: dict[str, float] | None = None
    outputs: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] | None = None
    count: int = 0
    unused: list[str] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)
    not_finite: dict[str, list[str]] = field(default_factory=dict)
    not_compared: str = ""
    loss_name: str | None = None
    inputs: Fed = field(default_factory=Fed)
    explained: list[Explained] = field(default_factory=list)
    eager: Eager | None = None
    first: Mismatch | None = None
    cut: list[str] = field(default_factory=list)
    draws_apart: int = 0

    def excess(self) -> Iterator[tuple[str, float, bool]]:
        """Name and difference of all above the tolerance, and whether it is a gradient's."""
        for errors, is_gradient in ((self.outputs, False), (self.gradients or {}, True)):
            for name, error in errors.items():
                if not error <= TOLERANCE:
                    yield name, error, is_gradient

    @property
    def ok(self) -> bool:
        """Whether everything agrees, and something was compared."""
        return self.equal and self.traced_as_eager and not self.lost and not self.loss_not_finite

    @property
    def equal(self) -> bool:
        """Whether the program computes what the reference does, as far as rounding shows it."""
        something = bool(self.outputs or self.gradients)
        return something and not unexplained(self.excess(), self.explained)

    @property
    def traced_as_eager(self) -> bool:
        """Whether the traced graph computes what the untouched model does."""
        return self.eager is None or self.eager.ok

    @property
    def loss_not_finite(self) -> bool:
        """Whether the loss is infinite or undefined on both sides, so that nothing follows."""
        return self.loss_name in self.not_finite.get("outputs", ())

    @property
    def all_explained(self) -> list[Explained]:
        """The differences that are no fault, those of the eager model included."""
        return [*self.explained, *(self.eager.explained if self.eager is not None else ())]

    @property
    def lost(self) -> list[Explained]:
        """Differences so much amplified that they say nothing."""
        return [each for each in self.all_explained if each.kind == "lost"]

    def to_json(self) -> dict[str, Any]:
        """The document of the CLI contract; numbers that are not finite are texts."""
        gradients = None
        if self.gradients is not None:
            gradients = {**worst(self.gradients), "count": self.count, "unused": self.unused,
                         "zero": self.zero}  # fmt: skip
        loss = {name: number(value) for name, value in (self.loss or {}).items()}
        return {
            "ok": self.ok,
            "devices": self.devices,
            "dtype": "float64",
            "inputs": self.inputs.to_json(),
            "loss": loss or None,
            "outputs": worst(self.outputs),
            "gradients": gradients,
            "not_compared": self.not_compared or None,
            "not_finite": {what: names for what, names in self.not_finite.items() if names},
            "conditioning": [each.to_json() for each in self.all_explained],
            "eager": None if self.eager is None else self.eager.to_json(),
            "first_difference": None if self.first is None else str(self.first),
            "cut": self.cut,
            "draws_apart": self.draws_apart,
        }

    def __str__(self) -> str:
        from shardlang.proof.text import summary

        return summary(self)

    def __repr__(self) -> str:
        from shardlang.proof.text import one_line

        return f"<Report: {one_line(self)}>"


def unexplained(excess: Iterator[tuple[str, float, bool]], why: list[Explained]) -> list[str]:
    """The names of differences that nothing explains."""
    known = {(each.name, each.backward) for each in why}
    return [name for name, _, is_gradient in excess if (name, is_gradient) not in known]


def worst(errors: Mapping[str, float]) -> dict[str, Any]:
    """The largest error, not-a-numbers first, and whose it is."""
    if not errors:
        return {"max_error": 0.0, "worst": None}
    name = max(errors, key=lambda key: (errors[key] != errors[key], errors[key]))
    return {"max_error": number(errors[name]), "worst": name}


def number(value: float) -> float | str:
    """A number as JSON holds it: `inf`, `-inf` and `nan` are texts there."""
    return value if math.isfinite(value) else str(value)
