"""What a proof finds wrong, as diagnostics: a difference, and what could not be compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from shardlang.grammar.diagnostics import Diagnostic, Span, error
from shardlang.proof.differences import Explained, worst
from shardlang.proof.report import Report, some


def findings(report: Report, span: Span) -> list[Diagnostic]:
    """All that is to be said of a proof; without an error it holds."""
    found = [] if report.equal and report.traced_as_eager else [mismatch(report, span)]
    if report.loss_not_finite:
        found.append(_not_finite(report, span))
    found += _conditioning(report, span)
    return found


def mismatch(report: Report, span: Span) -> Diagnostic:
    """The diagnostic for a proof that failed: what differs first, and what is worst."""
    notes = [f"{what}: {text}" for what, text in _errors(report)]
    if report.equal:
        return error(
            "SH0506",
            "the model computes something else when it is traced than when it runs",
            span,
            notes=notes,
            help="look in its code for what depends on tracing, on state that it keeps, or on"
            " random numbers of its own",
        )
    first = f"first difference: {report.first}" if report.first else "no single value differs first"
    return error(
        "SH0506",
        "the sharded program does not compute what the model computes",
        span,
        notes=[first, *notes],
        help="this is a fault of a rule or a pass; report it with the spec",
    )


def _errors(report: Report) -> Iterator[tuple[str, str]]:
    """What was compared, and its largest error."""
    if report.loss is not None:
        yield "loss", f"error {report.loss['error']:.1e}"
    eager = report.eager
    compared = {"outputs": report.outputs, "gradients": report.gradients, "updates": report.updates}
    compared |= {"accumulated": report.accumulated, "in stated types": report.typed}
    compared |= {"eager": eager.outputs, "eager gradients": eager.gradients} if eager else {}
    for what, errors in compared.items():
        if errors is not None:
            found = worst(errors)
            named = f", worst `{found.name}`" if found.name else ""
            yield what, f"error {found}{named}"


def _not_finite(report: Report, span: Span) -> Diagnostic:
    where = report.not_finite.get("gradients", [])
    notes = [f"gradients that are not finite either: {some(where)}"] if where else []
    assert report.loss is not None
    return error(
        "SH0510",
        f"the loss is {report.loss['reference']} on both sides, so it proves nothing",
        span,
        notes=[f"inputs: {report.inputs}", *notes],
        help="give the model file a `batches(seed)` with inputs at which the loss is finite, or"
        " fix the model where it divides by zero or takes a logarithm of it",
    )


def _conditioning(report: Report, span: Span) -> Iterator[Diagnostic]:
    """One finding for all that rounding explains; an error where it hides too much."""
    told = [each for each in report.all_explained if each.kind in ("ill-conditioned", "lost")]
    if not told:
        return
    lost = [each for each in told if each.kind == "lost"]
    message, help = (_LOST, _LOST_HELP) if lost else (_ILL, _ILL_HELP)
    notes = [str(each) for each in _largest(lost or told)]
    found = error("SH0509", message, span, notes=notes, help=help)
    yield found if lost else replace(found, severity="warning")


_LOST = "the model is so ill-conditioned that rounding hides what there is to prove"
_LOST_HELP = (
    "give the model file a `batches(seed)` with inputs at which it is stable, or prove a smaller"
    " model, or one with fewer layers"
)
_ILL = "the model is ill-conditioned: it is proven as far as rounding lets it be"
_ILL_HELP = "differences below the change that rounding makes cannot be seen"


def _largest(explained: list[Explained]) -> list[Explained]:
    return sorted(explained, key=lambda each: -each.error)[:3]
