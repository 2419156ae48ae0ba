"""Where a finding about the model stands: at a line of its code, and at a statement of the spec."""

from __future__ import annotations

import linecache
from pathlib import Path
from typing import Protocol, runtime_checkable

from shardlang.capture import CaptureError
from shardlang.capture.errors import ModelLine, is_installed, shown
from shardlang.grammar.diagnostics import Diagnostic, Label, Span, error
from shardlang.runtime.tracebacks import users_traceback
from shardlang.spec.types import Spec

_GO_WITHOUT_SAYING = {"SH0350": 2, "SH0352": 2, "SH0355": 1}
"""The codes of errors that the model's own code raised, with the frames that everyone expects.

Those are the function that builds the model, and its constructor; or the forward.
"""


@runtime_checkable
class Failure(Protocol):
    """An error or a remark that speaks of a line of the model's code."""

    @property
    def code(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def help(self) -> str: ...
    @property
    def source(self) -> str: ...


def at_model(failure: Failure, spec: Spec) -> Diagnostic:
    """The diagnostic for what the model's code caused."""
    stated, what = _statement(failure, spec)
    place, labels, notes = places(failure.source, stated, what)
    if module := getattr(failure, "module", ""):
        notes.append(f"in module `{module}`")
    notes += _traceback(failure)
    help = _help(failure, spec) or None
    return error(failure.code, failure.message, place, labels=labels, notes=notes, help=help)


def _help(failure: Failure, spec: Spec) -> str:
    """The remedy; where microbatches are in the way, what of the spec states them too."""
    if failure.code != "SH0409":
        return failure.help
    word = "accumulate" if spec.pipeline is None else "pipeline"
    return f"{failure.help}, or leave `{word}` out"


def _traceback(failure: Failure) -> list[str]:
    """The person's own traceback, where the error came through several of their lines."""
    cause = failure.__cause__ if isinstance(failure, CaptureError) else None
    expected = _GO_WITHOUT_SAYING.get(failure.code)
    if expected is None or cause is None or isinstance(cause, RecursionError):
        return []
    trace = users_traceback(cause)
    return [trace] if trace.count("\n  File ") > expected else []


def places(
    source: str, stated: Span, what: str = "the model is stated"
) -> tuple[Span, list[Label], list[str]]:
    """Where a finding about a line of the model stands: its place, other places, and notes.

    That is the line itself where it is known and the person's own to edit, else the statement of
    the spec; the other one is a label.

    Args:
        what: what the statement says.
    """
    line = _line_span(source)
    if line is None:
        return stated, [], [f"model line: {source}"] if source else []
    if is_installed(line.file):
        return stated, [Label(line, "in the model's code")], []
    return line, [Label(stated, f"{what} here")], []


def _statement(failure: Failure, spec: Spec) -> tuple[Span, str]:
    """The statement that asks for what fails, and what it says: else the `model` statement."""
    if failure.code == "SH0409" and spec.accumulate is not None:
        word = "accumulate" if spec.pipeline is None else "microbatches"
        return spec.accumulate.span, f"`{word}` is stated"
    if failure.code == "SH0512" and spec.budget_span is not None:
        return spec.budget_span, "`recompute` is stated"
    if failure.code == "SH0313" and spec.pipeline is not None:
        return spec.pipeline.split.span, "the stages are stated"
    name = getattr(failure, "input", "")
    for decl in spec.inputs if name else ():
        if decl.pattern.text == name or decl.pattern.matches(name):
            return decl.span, "the input is stated"
    return spec.model.span, "the model is stated"


def _line_span(source: str) -> Span | None:
    """The code on a line of the model, if the line is known and readable."""
    if not isinstance(source, ModelLine) or not source.path:
        return None
    text = linecache.getline(source.path, source.number).rstrip()
    if not text:
        return None
    start, number = len(text) - len(text.lstrip()), source.number
    return Span(str(shown(Path(source.path))), number, start + 1, number, len(text) + 1)
