"""Diagnostics to text: full (for people), concise (one line each), json and github."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from shardlang.grammar.diagnostics import Diagnostic, Label, Span
from shardlang.grammar.files import read_text

WIDTH = 160
"""The columns of a line where no terminal says how many it has."""

_NARROWEST = 40
_LARGEST_SOURCE_BYTES = 2**24

_COLORS = {"error": "31", "warning": "33", "note": "36"}


class Sources:
    """The texts that diagnostics point into: given ones first, then the files on disk.

    `width` is the number of columns that a line is cut to.
    """

    def __init__(self, texts: Mapping[str, str] | None = None, width: int = WIDTH) -> None:
        self.width = max(width, _NARROWEST)
        self._lines = {file: text.split("\n") for file, text in (texts or {}).items()}

    def line(self, file: str, number: int) -> str | None:
        """One line of a file, or None where there is no such line."""
        if file not in self._lines:
            self._lines[file] = _read_lines(file)
        lines = self._lines[file]
        return lines[number - 1] if 0 < number <= len(lines) else None


def _read_lines(file: str) -> list[str]:
    try:
        return read_text(Path(file), _LARGEST_SOURCE_BYTES).split("\n")
    except ValueError:
        return []


def use_color(stream: IO[str]) -> bool:
    """Whether to colour what goes to a stream: terminals only, and never under NO_COLOR."""
    return not os.environ.get("NO_COLOR") and stream.isatty()


@dataclass(slots=True)
class _Paint:
    on: bool

    def __call__(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.on and text else text


def render_full(diagnostic: Diagnostic, sources: Sources, color: bool = False) -> str:
    """The finding with the lines it points at, notes and help."""
    paint = _Paint(color)
    hue = f"1;{_COLORS[diagnostic.severity]}"
    head = paint(f"{diagnostic.severity}[{diagnostic.code}]", hue)
    lines = [f"{head}{paint(': ' + diagnostic.message, '1')}"]
    marks = _marks(diagnostic)
    width = len(str(max((mark.span.line for mark in marks), default=1)))
    arrow = paint("-->", "1;34")
    margin = " " * (width + 1)
    lines.append(f"{margin}{arrow} {diagnostic.span}")
    lines += _snippets(diagnostic, marks, sources, margin, paint, hue)
    tail = [("note", note) for note in diagnostic.notes]
    tail += [("help", diagnostic.help)] if diagnostic.help else []
    for kind, text in tail:
        below = text.replace("\n", f"\n{margin}   ")
        lines.append(f"{margin} {paint('=', '1;34')} {paint(kind, '1')}: {below}")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Mark:
    span: Span
    text: str = field(compare=False)
    primary: bool


def _marks(diagnostic: Diagnostic) -> list[_Mark]:
    own = [label.text for label in diagnostic.labels if label.span == diagnostic.span]
    others = [label for label in diagnostic.labels if label.span != diagnostic.span]
    marks = [_Mark(diagnostic.span, ", ".join(own), True)]
    return marks + [_Mark(label.span, label.text, False) for label in others]


def _snippets(
    diagnostic: Diagnostic,
    marks: list[_Mark],
    sources: Sources,
    margin: str,
    paint: _Paint,
    hue: str,
) -> list[str]:
    files = dict.fromkeys([diagnostic.span.file, *(mark.span.file for mark in marks)])
    bar = paint("|", "1;34")
    lines: list[str] = []
    for file in files:
        in_file = [mark for mark in marks if mark.span.file == file]
        numbers = sorted({mark.span.line for mark in in_file})
        if any(sources.line(file, number) is None for number in numbers):
            continue
        if file != diagnostic.span.file:
            lines.append(f"{margin}{paint('::>', '1;34')} {in_file[0].span}")
        lines.append(f"{margin} {bar}")
        previous = numbers[0]
        for number in numbers:
            if number - previous > 1:
                lines.append(paint("...", "1;34"))
            previous = number
            on_line = sorted((m for m in in_file if m.span.line == number), key=lambda m: m.span)
            whole = sources.line(file, number) or ""
            text, on_line = _cut_line(whole, on_line, sources.width - len(margin) - 3)
            count = paint(str(number).rjust(len(margin)), "1;34")
            lines.append(f"{count} {bar} {text}".rstrip())
            under = _underlines(on_line, len(text), paint, hue)
            lines += [f"{margin} {bar} {line}".rstrip() for line in under]
    return lines


def _cut_line(text: str, marks: list[_Mark], width: int) -> tuple[str, list[_Mark]]:
    """The part of a long line around its first mark, and the marks where they stand in it."""
    if len(text) <= width:
        return _printable(text), marks
    begin = min(max(0, marks[0].span.column - 1 - width // 3), len(text) - width)
    part = text[begin : begin + width]
    shown = ("…" if begin else part[:1]) + part[1:-1]
    shown += "…" if begin + width < len(text) else part[-1:]
    inside = [m for m in marks if m.span.column - 1 < begin + width]
    return _printable(shown), [_moved(mark, begin, width) for mark in inside]


def _moved(mark: _Mark, begin: int, width: int) -> _Mark:
    """A mark in a line that begins further right and ends after some columns."""
    span = mark.span
    start, end = (min(max(at - begin, 1), width) for at in (span.column, span.end_column))
    return replace(mark, span=replace(span, column=start, end_column=end))


def _printable(text: str) -> str:
    return "".join(
        " " if char == "\t" else char if char.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for char in text
    ).rstrip()


def _underlines(marks: list[_Mark], length: int, paint: _Paint, hue: str) -> list[str]:
    """The rows under one source line: carets, then the remarks, the rightmost one inline."""
    rows: list[list[tuple[int, str, str]]] = [[]]
    for mark in marks:
        start, end = _columns(mark, length)
        char, style = ("^", hue) if mark.primary else ("-", "1;34")
        rows[0].append((start, char * (end - start), style))
    last = marks[-1]
    inline = all(_columns(m, length)[1] <= _columns(last, length)[0] for m in marks[:-1])
    hanging = [mark for mark in marks if mark.text and not (inline and mark is last)]
    if inline and last.text:
        rows[0].append((_columns(last, length)[1] + 1, last.text, hue if last.primary else "1;34"))
    while hanging:
        bars = [(mark.span.column - 1, "|", "1;34") for mark in hanging]
        mark = hanging.pop()
        rows += [list(bars), [*bars[:-1], (mark.span.column - 1, mark.text, "1;34")]]
    return [_row(shards, paint) for shards in rows]


def _columns(mark: _Mark, length: int) -> tuple[int, int]:
    start = mark.span.column - 1
    end = mark.span.end_column - 1 if mark.span.end_line == mark.span.line else length
    return start, max(end, start + 1)


def _row(shards: list[tuple[int, str, str]], paint: _Paint) -> str:
    """Put texts at columns; of two that overlap, the first stands."""
    line, column = "", 0
    for start, text, style in sorted(shards, key=lambda shard: shard[0]):
        text = text[max(column - start, 0) :]
        start = max(start, column)
        line += " " * (start - column) + paint(text, style)
        column = start + len(text)
    return line


def render_concise(diagnostic: Diagnostic) -> str:
    """`file:line:column: error[SH0203]: message`."""
    return str(diagnostic)


def to_json(diagnostic: Diagnostic) -> dict[str, object]:
    """The finding as the JSON documents carry it."""
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "message": diagnostic.message,
        **_place(diagnostic.span),
        "help": diagnostic.help,
        "notes": list(diagnostic.notes),
        "labels": [{"text": label.text, **_place(label.span)} for label in diagnostic.labels],
    }


def _place(span: Span) -> dict[str, object]:
    return {
        "file": span.file,
        "line": span.line,
        "column": span.column,
        "end_line": span.end_line,
        "end_column": span.end_column,
    }


def render_github(diagnostic: Diagnostic) -> str:
    """A workflow command that annotates the line in a pull request."""
    kind = "notice" if diagnostic.severity == "note" else diagnostic.severity
    span = diagnostic.span
    properties: dict[str, object] = {"file": span.file}
    if span.line:
        properties |= {"line": span.line, "col": span.column}
        properties |= {"endLine": span.end_line, "endColumn": span.end_column}
    properties["title"] = diagnostic.code
    shown = ",".join(f"{key}={_escape_property(str(text))}" for key, text in properties.items())
    help = f"\nhelp: {diagnostic.help}" if diagnostic.help else ""
    return f"::{kind} {shown}::{_escape(diagnostic.message + help)}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape(text).replace(":", "%3A").replace(",", "%2C")


def render_all(
    diagnostics: Iterable[Diagnostic], style: str, sources: Sources, color: bool = False
) -> str:
    """Render findings in a style: `full`, `concise` or `github`."""
    one: dict[str, Callable[[Diagnostic], str]] = {
        "full": lambda found: render_full(found, sources, color) + "\n",
        "concise": render_concise,
        "github": render_github,
    }
    return "\n".join(one[style](found) for found in diagnostics)


__all__ = [
    "Label",
    "Sources",
    "render_all",
    "render_concise",
    "render_full",
    "render_github",
    "to_json",
    "use_color",
]
