"""A forgiving scanner: what the parser needs for comments, recovery and messages.

It never fails: a character that no token can hold becomes a token of kind `stray`.
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from shardlang.grammar.diagnostics import Span

Kind = Literal["comment", "string", "unclosed", "word", "number", "mark", "stray"]
_KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}

FORMS = {
    "use": 'use "FILE"',
    "let": "let NAME = VALUE",
    "mesh": "mesh { NAME = SIZE }",
    "dims": "dims { NAME = AXES }",
    "model": 'model "FILE.py:FUNCTION"(NAME = VALUE)',
    "input": "input NAME : TYPE[SIZES] [LAYOUT]",
    "output": "output NAME [LAYOUT]",
    "loss": "loss NAME",
    "param": 'param "PATTERN" [LAYOUT]',
    "buffer": 'buffer "PATTERN" [LAYOUT]',
    "store": 'store "PATTERN" over AXES',
    "value": 'value "MODULES".out [LAYOUT]',
    "data": 'data "FILE"',
    "optimizer": "optimizer NAME(NAME = VALUE)",
    "group": 'group "PATTERN", "PATTERN" (NAME = VALUE)',
    "learning_rate": "learning_rate PHASE(steps = COUNT) PHASE(steps = COUNT)",
    "random": "random fast",
    "recompute": 'recompute "MODULES"',
    "accumulate": "accumulate COUNT",
    "pipeline": 'pipeline AXIS { split "MODULES" microbatches COUNT }',
    "checkpoint": "checkpoint every COUNT keep COUNT",
    "precision": "precision { compute = TYPE }",
    "evaluate": "evaluate every COUNT batches COUNT",
    "schedule": "schedule { prefetch SIZE }",
    "cluster": "cluster { peak TYPE = NUMBER }",
    "expect": 'expect { forbid COLLECTIVE over AXES in "MODULES" }',
}
"""How each statement is written."""

STATEMENTS = tuple(FORMS)
"""The words that begin a statement."""

_BLOCKS = ("mesh", "dims", "precision", "schedule", "cluster", "expect")

_TOKEN = re.compile(
    r"""
      (?P<space>[ \t\f\r\n]+)
    | (?P<comment>\#[^\n]*)
    | (?P<string>"[^"\r\n]*")
    | (?P<unclosed>"[^"\r\n]*)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<number>[0-9][A-Za-z0-9_]*)
    | (?P<mark>\.\.\.|==|<=|>=|/(?![/*])|[{}\[\]()=,:.*+<>?-])
    | (?P<stray>.)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Token:
    """A stretch of text and its offset."""

    kind: Kind
    text: str
    start: int
    at_line_start: bool

    @property
    def end(self) -> int:
        """Offset just past the token."""
        return self.start + len(self.text)


class Source:
    """A text with its name; turns offsets into spans."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def place(self, offset: int) -> tuple[int, int]:
        """The 1-based (line, column) of an offset."""
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def span(self, start: int, end: int) -> Span:
        """The span between two offsets."""
        return Span(self.file, *self.place(start), *self.place(end))


def scan(text: str) -> list[Token]:
    """All tokens but white space."""
    return list(_tokens(text))


def _tokens(text: str) -> Iterator[Token]:
    fresh_line = True
    for match in _TOKEN.finditer(text):
        if match.lastgroup == "space":
            fresh_line = fresh_line or "\n" in match.group()
            continue
        kind = _KINDS[match.lastgroup or "stray"]
        yield Token(kind, match.group(), match.start(), fresh_line)
        fresh_line = False


def statement_starts(tokens: list[Token]) -> list[Token]:
    """The tokens that, judged by their neighbours, begin a statement."""
    code = [token for token in tokens if token.kind != "comment"]
    following = [*code[1:], None]
    return [
        token
        for token, after in zip(code, following, strict=True)
        if after is not None and _begins_statement(token, after)
    ]


def _is_misspelt(word: str) -> bool:
    """Whether a word is almost one that begins a statement."""
    if word in ("layout", "split"):
        return False
    return bool(difflib.get_close_matches(word, STATEMENTS, n=1, cutoff=0.75))


def _begins_statement(token: Token, after: Token) -> bool:
    if token.kind != "word":
        return False
    if token.text not in STATEMENTS:
        return token.at_line_start and after.kind == "string" and _is_misspelt(token.text)
    if token.text in _BLOCKS:
        return after.text == "{"
    if after.kind in ("string", "unclosed"):
        return True
    return token.at_line_start and after.kind == "word"
