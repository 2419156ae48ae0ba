"""What people write by habit, from Python or other languages, and how it is written here."""

from __future__ import annotations

import re
from collections.abc import Set

from shardlang.grammar.diagnostics import Diagnostic, error, join_words, quote
from shardlang.grammar.scan import Source, Token

OPS = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "full_gather",
    "transfer", "any",
)  # fmt: skip
"""The collectives."""

_SINGLE = re.compile(r"'([^'\"\r\n]*)'")
_NAME = re.compile(r"(?:[^\s\"'{}\[\]()#]|\{[^\s{}]*\})+")
_SIDE = re.compile(r"\.(?:in|out)(?:\.\w+)*$")
_REMEDIES = {
    ";": "remove it; a statement ends where the next one begins",
    "/": "a comment begins with `#`",
    "!": "a comment begins with `#`",
    "|": "a dim over several axes is written `dp*tp`",
    "@": "a dim over several axes is written `dp*tp`",
    "\u201c": 'strings stand in straight quotes: `"name"`',
    "\u201d": 'strings stand in straight quotes: `"name"`',
}


def stray(source: Source, token: Token) -> tuple[Diagnostic, int]:
    """The finding for a character that means nothing, and the offset just past what it covers."""
    single = _SINGLE.match(source.text, token.start)
    if single is None:
        span, shown = source.span(token.start, token.end), token.text
        if not shown.isprintable():
            shown = shown.encode("unicode_escape").decode()
        help = _REMEDIES.get(token.text, "remove it")
        return error("SH0102", f"`{shown}` means nothing here", span, help=help), token.end
    return error(
        "SH0102",
        "a string stands in double quotes",
        source.span(token.start, single.end()),
        help=f'write `"{single[1]}"`',
    ), single.end()


def whole_name(text: str, start: int) -> tuple[str, int]:
    """A name or pattern without quotes and its end: no `.out` behind it, and no final colon."""
    found = _NAME.match(text, start)
    name = text[start : start + 1] if found is None else found[0]
    name = _SIDE.sub("", name.rstrip(":=,")) or name
    return name, start + len(name)


def habit(found: Token, expected: Set[str]) -> str | None:
    """How what was probably meant is written; None where no habit is known."""
    if "UNDERSCORE" in expected and "EQUAL" not in expected:
        return _entry(found)
    if found.text == "+" and {"STAR", "RSQB"} <= expected:
        return "a dim over several axes is written `dp*tp`"
    if found.kind == "string" and expected == {"NAME"}:
        return f"axes and dims stand without quotes: `{found.text[1:-1]}`"
    if found.text == "," and "RBRACE" in expected:
        return "the lines of a block need no comma between them"
    if found.text == ":" and "EQUAL" in expected:
        return "write `=`"
    if "OP" in expected:
        return f"the collectives are {join_words(quote(OPS), 'and')}"
    if "COMPARISON" in expected:
        return "the comparisons are `==`, `<=`, `<`, `>=` and `>`"
    if found.text == "." and "BELOW" not in expected and expected == {"LSQB"}:
        return "element types stand without a module: `f32`, `bf16`, `i64`"
    return None


def _entry(found: Token) -> str:
    """What to write for one dim of a layout."""
    if found.kind == "string":
        return f"axes and dims stand without quotes: `{found.text[1:-1]}`; a whole dim is `_`"
    if found.text in ("(", "["):
        return "a dim over several axes is written `dp*tp`"
    return "each dim is the name of an axis or of declared dims, or `_` if it is whole: `[tp, _]`"
