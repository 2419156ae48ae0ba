"""Text to tree.

The parser is LALR. After a syntax error it starts again at the next place that looks like
a statement, so that one run reports the errors of all statements.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Protocol

from lark import Lark, Token, UnexpectedCharacters, UnexpectedToken

from shardlang.grammar.build import build_tree
from shardlang.grammar.diagnostics import Diagnostic, has_errors, in_order
from shardlang.grammar.rule import Parsed
from shardlang.grammar.scan import Source, scan
from shardlang.grammar.syntax_errors import (
    Failure,
    Syntax,
    explain_failure,
    lexical_findings,
    number_too_large,
    reserved_name,
)
from shardlang.grammar.tree import Tree

_MOST_ERRORS = 50
_WORD = re.compile(r"[A-Za-z0-9_]")


def make_lark(strict: bool = False) -> Lark:
    """Build the LALR parser; `strict` also checks the grammar for collisions of terminals."""
    grammar = Path(__file__).with_name("shard.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="contextual", strict=strict, propagate_positions=True)


_lark = cache(make_lark)


class _Lexer(Protocol):
    """What is used of lark's lexer."""

    def lex(self, parser_state: object) -> Iterator[Token]: ...


class _Steps(Protocol):
    """What is used of lark's parser by single tokens; lark does not annotate it."""

    @property
    def lexer_thread(self) -> _Lexer: ...
    @property
    def parser_state(self) -> object: ...
    def feed_token(self, token: Token) -> object: ...
    def feed_eof(self, last_token: Token | None) -> Parsed: ...
    def accepts(self) -> set[str]: ...


def _steps(text: str) -> _Steps:
    return _lark().parse_interactive(text)


def parse(text: str, file: str = "<text>") -> tuple[Tree | None, list[Diagnostic]]:
    """Parse one file.

    Returns:
        The tree, or None where there are errors, and all findings in order of place. Any text
        whatever gives a result; nothing is raised.
    """
    source = Source(text, file)
    tokens = scan(text)
    syntax = Syntax(source, tokens)
    findings = lexical_findings(syntax)
    parsed = _parse_with_recovery(syntax, findings)
    if parsed is None or has_errors(findings):
        return None, in_order(findings)
    return build_tree(parsed, source, tokens), in_order(findings)


def _parse_with_recovery(syntax: Syntax, findings: list[Diagnostic]) -> Parsed | None:
    """Parse, adding a finding for each statement that fails; the tree if none does."""
    lexical = [finding.span.start for finding in findings]
    begin = 0
    for _ in range(_MOST_ERRORS):
        result = _attempt(syntax, begin, findings)
        if not isinstance(result, Failure):
            return result if begin == 0 else None
        finding, resume = explain_failure(syntax, result, begin)
        begun = syntax.source.place(syntax.statement_of(result.offset, begin))
        until = syntax.source.place(len(syntax.source.text) if resume is None else resume)
        if not any(begun <= place < until for place in lexical):
            findings.append(finding)
        if resume is None:
            return None
        begin = resume
    return None


def _attempt(syntax: Syntax, begin: int, findings: list[Diagnostic]) -> Parsed | Failure:
    """Parse from an offset to the end, up to the first failure."""
    text = syntax.blanked(begin)
    state = _steps(text)
    fed: list[Token] = []
    offset = len(text)
    try:
        for token in state.lexer_thread.lex(state.parser_state):
            if _is_glued(text, token):
                offset = token.start_pos or 0
                break
            state.feed_token(token)
            fed.append(token)
            findings += _token_findings(syntax, token)
        else:
            return state.feed_eof(fed[-1] if fed else None)
    except UnexpectedCharacters as failure:
        offset = failure.pos_in_stream or 0
    except UnexpectedToken as failure:
        if failure.token.type != "$END":
            offset = failure.token.start_pos or 0
    previous_end = fed[-1].end_pos if fed else None
    return Failure(offset, previous_end, _accepted_after(text, len(fed)))


def _accepted_after(text: str, count: int) -> frozenset[str]:
    """The terminals that may follow the first `count` tokens."""
    state = _steps(text)
    tokens = state.lexer_thread.lex(state.parser_state)
    for _ in range(count):
        state.feed_token(next(tokens))
    return frozenset(state.accepts())


def _is_glued(text: str, token: Token) -> bool:
    """Whether a keyword or number runs into the next word, as in `letx` or `2tp`."""
    end = token.end_pos or 0
    return bool(_WORD.match(text[end - 1]) and end < len(text) and _WORD.match(text[end]))


def _token_findings(syntax: Syntax, token: Token) -> list[Diagnostic]:
    if token.type == "NAME" and token in ("over", "as"):
        return [reserved_name(syntax, token.start_pos or 0)]
    if token.type in ("INT", "FLOAT", "SIZE") and not _fits(token):
        return [number_too_large(syntax, token.start_pos or 0, token.end_pos or 0)]
    return []


def _fits(token: Token) -> bool:
    """Whether a number has a value: integers below 2**63, floats finite."""
    if token.type == "FLOAT":
        return math.isfinite(float(token))
    digits = token.rstrip("KMGTiB").lstrip("+-")
    if len(digits) > 19:
        return False
    unit = {"K": 10, "M": 20, "G": 30, "T": 40}.get(token[-3:-2] if token.endswith("B") else "", 0)
    return int(digits) << unit < 1 << 63
