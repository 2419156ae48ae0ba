"""One rule of lark's parse tree, whose children are read as what the grammar has there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from lark import Token
from lark import Tree as LarkTree

from shardlang.grammar.diagnostics import NOWHERE, Span

Parsed: TypeAlias = "LarkTree[Token]"
_ChoiceT = TypeVar("_ChoiceT", bound=str)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule with its children by position; one that may be left out is None where it is."""

    parsed: Parsed
    file: str

    @property
    def name(self) -> str:
        """The name of the rule in the grammar."""
        return str(self.parsed.data)

    @property
    def span(self) -> Span:
        """The place of the rule's text; none where the text is empty."""
        meta = self.parsed.meta
        if meta.empty:
            return NOWHERE
        return Span(self.file, meta.line, meta.column, meta.end_line, meta.end_column)

    def has(self, index: int) -> bool:
        """Whether a child that may be left out is there."""
        return self.parsed.children[index] is not None

    def rule(self, index: int) -> Rule:
        """The child at `index`, which is a rule."""
        return self._as_rule(self.parsed.children[index])

    def maybe_rule(self, index: int) -> Rule | None:
        """The child at `index`, which is a rule or left out."""
        return self.rule(index) if self.has(index) else None

    def rules(self, start: int = 0) -> list[Rule]:
        """The children from `start` on, all of which are rules."""
        return [self._as_rule(x) for x in self.parsed.children[start:] if x is not None]

    def token(self, index: int) -> Token:
        """The child at `index`, which is a token."""
        return _as_token(self.parsed.children[index])

    def maybe_token(self, index: int) -> Token | None:
        """The child at `index`, which is a token or left out."""
        return self.token(index) if self.has(index) else None

    def tokens(self, start: int = 0) -> list[Token]:
        """The children from `start` on, all of which are tokens."""
        return [_as_token(x) for x in self.parsed.children[start:] if x is not None]

    def span_of(self, token: Token) -> Span:
        """The place of a token of the file."""
        place = (token.line, token.column, token.end_line, token.end_column)
        line, column, end_line, end_column = (number or 1 for number in place)
        return Span(self.file, line, column, end_line, end_column)

    def _as_rule(self, child: Parsed | Token) -> Rule:
        assert isinstance(child, LarkTree), f"`{self.name}` has {child!r} where a rule stands"
        return Rule(child, self.file)


def _as_token(child: Parsed | Token) -> Token:
    assert isinstance(child, Token), f"{child!r} stands where a token does"
    return child


def chosen(token: Token, choices: Sequence[_ChoiceT]) -> _ChoiceT:
    """The word that a token is, out of those that the grammar allows there."""
    return next(choice for choice in choices if choice == str(token))
