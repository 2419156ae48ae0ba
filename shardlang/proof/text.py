"""A proof in words: a few lines, or one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shardlang.grammar.diagnostics import join_words, quote
from shardlang.proof.report import Eager, Explained, Report, worst

SHOWN = 3
"""How many names a line lists."""


def summary(report: Report) -> str:
    """What was compared and what was not, a line for each."""
    lines = [_heading(report), f"  inputs     {report.inputs}"]
    if (loss := report.loss) is not None:
        lines.append(f"  loss       {loss['sharded']:.12g}, error {loss['error']:.1e}")
    lines += [f"  outputs    {_error(report.outputs)}", *_gradients(report)]
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
    errors = [f"outputs {float(worst(report.outputs)['max_error']):.1e}"]
    if report.gradients is not None:
        errors.append(f"gradients {float(worst(report.gradients)['max_error']):.1e}")
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
    return f"error {float(found['max_error']):.1e}, worst `{found['worst']}`"


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
    text = f"outputs {float(worst(eager.outputs)['max_error']):.1e}"
    if eager.gradients is None:
        return text
    return f"{text}, gradients {float(worst(eager.gradients)['max_error']):.1e}"
