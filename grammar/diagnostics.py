"""Where and what: the two records that every finding of the compiler is made of.

A stage reports all its findings together, as a list of `Diagnostic`; renderers
(`shardlang.grammar.render`) turn the list into text. The table of codes is
`shardlang.grammar.codes.CODES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A stretch of text: lines and columns count from 1, the end is exclusive.

    Line 0 stands for a file as a whole: the finding is about no line of it.
    """

    file: str
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

    @property
    def start(self) -> tuple[int, int]:
        """The (line, column) of the first character."""
        return (self.line, self.column)

    @property
    def end(self) -> tuple[int, int]:
        """The (line, column) just past the last character."""
        return (self.end_line, self.end_column)

    def to(self, other: Span) -> Span:
        """The span from the start of this one to the end of `other`."""
        return Span(self.file, self.line, self.column, other.end_line, other.end_column)


NOWHERE = Span("", 1, 1, 1, 1)
"""The span of a node that was made by hand."""


def start_of_file(file: str) -> Span:
    """The span for a finding about a file that has no place yet, or is not read."""
    return Span(file, 1, 1, 1, 1)


def whole_file(file: str) -> Span:
    """The span for a finding of a later stage, which is about no line of the file."""
    return Span(file, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Label:
    """A remark at a place; one whose span is the diagnostic's own stands beside its carets."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. Lower case, no final period, backticks around names, the fix in `help`."""

    code: str
    severity: Severity
    message: str
    span: Span
    labels: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    help: str | None = None

    def __str__(self) -> str:
        return f"{self.span}: {self.severity}[{self.code}]: {self.message}"

    @property
    def is_error(self) -> bool:
        """Whether this finding stops the compiler."""
        return self.severity == "error"


def error(
    code: str,
    message: str,
    span: Span,
    *,
    label: str | None = None,
    labels: Iterable[Label] = (),
    notes: Iterable[str] = (),
    help: str | None = None,
) -> Diagnostic:
    """Make an error; `label` is the remark beside the primary span's carets."""
    own = (Label(span, label),) if label is not None else ()
    return Diagnostic(code, "error", message, span, (*labels, *own), tuple(notes), help)


def has_errors(diagnostics: Iterable[Diagnostic]) -> bool:
    """Whether any finding is an error."""
    return any(diagnostic.is_error for diagnostic in diagnostics)


def in_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """The findings without repeats, in the order of their places."""
    unique = dict.fromkeys(diagnostics)
    return sorted(unique, key=lambda found: (found.span, found.code, found.message))


def join_words(words: Iterable[str], last: str = "or") -> str:
    """`a`, `a or b`, `a, b or c`."""
    listed = list(words)
    if len(listed) < 2:
        return "".join(listed)
    return f"{', '.join(listed[:-1])} {last} {listed[-1]}"


def quote(words: Iterable[str]) -> list[str]:
    """Put every word between backticks."""
    return [f"`{word}`" for word in words]
