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
    stated = _statement(getattr(failure, "input", ""), spec)
    place, labels, notes = places(failure.source, stated)
    if module := getattr(failure, "module", ""):
        notes.append(f"in module `{module}`")
    notes += _traceback(failure)
    help = failure.help or None
    return error(failure.code, failure.message, place, labels=labels, notes=notes, help=help)


def _traceback(failure: Failure) -> list[str]:
    """The person's own traceback, where the error came through several of their lines."""
    cause = failure.__cause__ if isinstance(failure, CaptureError) else None
    expected = _GO_WITHOUT_SAYING.get(failure.code)
    if expected is None or cause is None or isinstance(cause, RecursionError):
        return []
    trace = users_traceback(cause)
    return [trace] if trace.count("\n  File ") > expected else []


def places(source: str, stated: Span) -> tuple[Span, list[Label], list[str]]:
    """Where a finding about a line of the model stands: its place, other places, and notes.

    That is the line itself where it is known and the person's own to edit, else the statement of
    the spec; the other one is a label.
    """
    line = _line_span(source)
    if line is None:
        return stated, [], [f"model line: {source}"] if source else []
    if is_installed(line.file):
        return stated, [Label(line, "in the model's code")], []
    return line, [Label(stated, "the model is stated here")], []


def _statement(name: str, spec: Spec) -> Span:
    """The `input` statement of that name, else the `model` statement."""
    for decl in spec.inputs if name else ():
        if decl.pattern.text == name or decl.pattern.matches(name):
            return decl.span
    return spec.model.span


def _line_span(source: str) -> Span | None:
    """The code on a line of the model, if the line is known and readable."""
    if not isinstance(source, ModelLine) or not source.path:
        return None
    text = linecache.getline(source.path, source.number).rstrip()
    if not text:
        return None
    start, number = len(text) - len(text.lstrip()), source.number
    return Span(str(shown(Path(source.path))), number, start + 1, number, len(text) + 1)
