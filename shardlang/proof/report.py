"""What a proof found, as data, as a document and in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

from shardlang.grammar.diagnostics import join_words, quote
from shardlang.grammar.words import counted
from shardlang.proof.differences import (
    TOLERANCE,
    Eager,
    Explained,
    Mismatch,
    number,
    unexplained,
    worst,
)
from shardlang.proof.inputs import Fed

SHOWN = 3
"""How many names a line lists."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The stages of a step, and who computes them in which order."""

    schedule: str
    stages: int
    ranks: int

    def __str__(self) -> str:
        return (
            f"{self.schedule} of {counted(self.stages, 'stage')} on {counted(self.ranks, 'rank')}"
        )


@dataclass(slots=True)
class Report:
    """The result of `verify`.

    An error is max|a-b| / max(max|b|, 1e-3 G), where G is the largest |gradient| of any parameter
    (for outputs: of any output), and for what is zero but for rounding, by the size of the terms
    that cancel there; numbers that are not finite are compared position by position.

    Attributes:
        accumulated: of the loss and every gradient of the step of several microbatches.
        microbatches: how many these are.
        pipeline: what computes that step, where it is no one device for all of the model.
        updates: of every parameter, and of every state of its optimizer, after two updates; None
            where there is nothing to train, or rounding explains a difference before.
        recipe: the optimizer.
        typed: of every gradient in the types that the spec states, the difference from float64 in
            parts of what rounding allows (`shardlang.proof.typed`); None where it states none.
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
    accumulated: dict[str, float] | None = None
    microbatches: int = 1
    pipeline: Pipeline | None = None
    updates: dict[str, float] | None = None
    recipe: str = ""
    typed: dict[str, float] | None = None
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
        more = [*(self.updates or {}).values(), *(self.accumulated or {}).values()]
        updated = all(error <= TOLERANCE for error in more)
        updated = updated and all(part <= 1.0 for part in (self.typed or {}).values())
        return something and updated and not unexplained(self.excess(), self.explained)

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
        """The differences that are not fault, those of the eager model included."""
        return [*self.explained, *(self.eager.explained if self.eager is not None else ())]

    @property
    def lost(self) -> list[Explained]:
        """Differences so much amplified that they say nothing."""
        return [each for each in self.all_explained if each.kind == "lost"]

    def to_json(self) -> dict[str, object]:
        """The document of the CLI contract; numbers that are not finite are texts."""
        gradients = None
        if self.gradients is not None:
            gradients = {
                **worst(self.gradients).to_json(),
                "count": self.count,
                "unused": self.unused,
                "zero": self.zero,
            }
        loss = {name: number(value) for name, value in (self.loss or {}).items()}
        return {
            "ok": self.ok,
            "devices": self.devices,
            "dtype": "float64",
            "inputs": self.inputs.to_json(),
            "loss": loss or None,
            "outputs": worst(self.outputs).to_json(),
            "gradients": gradients,
            "accumulated": None if self.accumulated is None else worst(self.accumulated).to_json(),
            "pipeline": None if self.pipeline is None else self._pipeline(self.pipeline),
            "updates": None if self.updates is None else worst(self.updates).to_json(),
            "typed": None if self.typed is None else worst(self.typed).to_json(),
            "not_compared": self.not_compared or None,
            "not_finite": {what: names for what, names in self.not_finite.items() if names},
            "conditioning": [each.to_json() for each in self.all_explained],
            "eager": None if self.eager is None else self.eager.to_json(),
            "first_difference": None if self.first is None else str(self.first),
            "cut": self.cut,
            "draws_apart": self.draws_apart,
        }

    def _pipeline(self, made: Pipeline) -> dict[str, object]:
        return {**asdict(made), "microbatches": self.microbatches}

    def __str__(self) -> str:
        return summary(self)

    def __repr__(self) -> str:
        return f"<Report: {one_line(self)}>"


def summary(report: Report) -> str:
    """What was compared and what was not, a line for each."""
    lines = [_heading(report), f"  inputs     {report.inputs}"]
    if (loss := report.loss) is not None:
        lines.append(f"  loss       {loss['sharded']:.12g}, error {loss['error']:.1e}")
    lines += [f"  outputs    {_error(report.outputs)}", *_gradients(report)]
    if report.accumulated:
        many = f"in {report.microbatches} microbatches"
        what = "accumulate" if report.pipeline is None else "pipeline  "
        by = "" if report.pipeline is None else f", {report.pipeline}"
        lines.append(f"  {what} {_error(report.accumulated)}, {many}{by}")
    if report.updates:
        lines.append(f"  updates    {_error(report.updates)}, after two steps of {report.recipe}")
    if report.typed:
        most = f"{worst(report.typed)} of what rounding allows"
        lines.append(f"  types      gradients at most {most}, in the types of `precision`")
    for what, names in report.not_finite.items():
        if names:
            lines.append(f"  not finite {what} {some(names)}, the same on both sides")
    lines += _rounding([each for each in report.all_explained if each.kind != "zero"])
    if report.eager is not None:
        lines.append(f"  eager      {_eager(report.eager)} at the model's own dtype")
    if report.draws_apart:
        lines.append(f"  random     {report.draws_apart} draws, as the shards make them")
    lines += [f"  cut        {cut}" for cut in report.cut]
    return "\n".join(lines)


def one_line(report: Report) -> str:
    """The verdict and the largest errors."""
    errors = [f"outputs {worst(report.outputs)}"]
    if report.gradients is not None:
        errors.append(f"gradients {worst(report.gradients)}")
    else:
        errors.append(f"gradients not compared: {report.not_compared}")
    return f"{_heading(report)}; {', '.join(errors)}"


def some(names: Iterable[str]) -> str:
    """The first few names, and how many there are beside."""
    found = list(names)
    beside = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return join_words(quote(found[:SHOWN]), "and") if not beside else (
        ", ".join(quote(found[:SHOWN])) + beside
    )  # fmt: skip


def _heading(report: Report) -> str:
    what = "proven equal" if report.ok else "not proven"
    return f"{what} on {report.devices} simulated devices, in float64"


def _error(errors: dict[str, float]) -> str:
    found = worst(errors)
    return f"error {found}, worst `{found.name}`"


def _gradients(report: Report) -> Iterator[str]:
    if report.gradients is None:
        yield f"  gradients  not compared: {report.not_compared}"
        return
    yield f"  gradients  {_error(report.gradients)}, of {report.count} parameters"
    if report.zero:
        yield f"  zero       everywhere: the gradients of {some(report.zero)}"
    rounding = {each.name for each in report.all_explained if each.kind == "zero" and each.backward}
    if rounding:
        yield f"  zero       but for rounding: the gradients of {some(sorted(rounding))}"
    if report.unused:
        yield f"  unused     no gradient reaches {len(report.unused)}, {some(report.unused)}"


def _rounding(explained: list[Explained]) -> Iterator[str]:
    """The largest differences that rounding explains."""
    told = sorted(explained, key=lambda each: -each.error)
    yield from (f"  rounding   {each}" for each in told[:SHOWN])
    if len(told) > SHOWN:
        yield f"  rounding   {len(told) - SHOWN} more differences, all smaller"


def _eager(eager: Eager) -> str:
    text = f"outputs {worst(eager.outputs)}"
    if eager.gradients is None:
        return text
    return f"{text}, gradients {worst(eager.gradients)}"
