"""What is wrong with a graph's text, and where."""

from __future__ import annotations

from dataclasses import dataclass

from lark import Token

_SHOWN = 100
"""How many characters of a line an error shows."""


@dataclass(frozen=True, slots=True)
class Place:
    """Part of a line: its first column, from 1 on, and how many characters it has."""

    column: int
    width: int

    @staticmethod
    def of(token: Token) -> Place:
        """The place of a token."""
        return Place(token.column or 1, len(token))


class GraphTextError(ValueError):
    """Text that is no graph: what is wrong, where, and what to do.

    Attributes:
        help: what to do.
        line: the number of the line, from 1 on; 0 until the reader of the lines knows it.
        place: the part of the line; None where the rule of the grammar that failed tells it.
        text: the line.
    """

    def __init__(self, message: str, help: str, at: Token | Place | None = None) -> None:
        super().__init__(message)
        self.message, self.help = message, help
        self.place = Place.of(at) if isinstance(at, Token) else at
        self.line, self.text = 0, ""

    def on(self, line: int, text: str, place: Place) -> GraphTextError:
        """The same error with its line, and a place if it has none of its own."""
        self.line, self.text = line, text
        self.place = self.place or place
        return self

    def __str__(self) -> str:
        if self.place is None:
            return f"{self.message}\n  help: {self.help}"
        column = self.place.column
        first = max(0, column - 1 - _SHOWN // 2)
        shown = self.text[first : first + _SHOWN].replace("\t", " ").rstrip()
        room = max(1, first + _SHOWN - column + 1)
        caret = " " * (column - 1 - first) + "^" * max(1, min(self.place.width, room))
        return (
            f"line {self.line}, column {column}: {self.message}\n"
            f"    {shown}\n    {caret}\n  help: {self.help}"
        )
