"""What to say about text that is not a spec (SH01xx)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from shardlang.grammar.diagnostics import Diagnostic, Label, error, join_words, quote
from shardlang.grammar.habits import OPS, habit, stray, whole_name
from shardlang.grammar.scan import (
    FORMS,
    STATEMENTS,
    Source,
    Token,
    statement_starts,
)

_OPEN = {"{": "}", "[": "]", "(": ")"}
_CLOSE = {closer: opener for opener, closer in _OPEN.items()}

_WORDS: dict[str, tuple[str, ...]] = {
    **{word.upper(): (word,) for word in STATEMENTS},
    "REGATHER": ("regather",),
    "STORED": ("gradients", "optimizer"),
    "MODE": ("exact", "fast"),
    "CUT": ("packed", "documents"),
    "SELECTIVE": ("selective",),
    "TO": ("to",),
    "SIDE": ("in", "out"),
    "BYTES": ("bytes",),
    "PHASE": ("forward", "backward", "update"),
    "OP": OPS,
    "BOUND": ("bound",),
    "OVER": ("over",),
    "EVERY": ("every",),
    "KEEP": ("keep",),
    "KEEP_EVERY": ("keep_every",),
    "ON_NAN": ("on_nan",),
    "NAN": ("stop", "skip", "rollback"),
    "BATCHES": ("batches",),
    "ON": ("on",),
    "AS": ("as",),
    "ROLE": ("data", "model"),
    "BELOW": ("below",),
    "IN": ("in",),
    "FORBID": ("forbid",),
    "LAYOUT": ("layout",),
    "LOCAL": ("local",),
    "PREFETCH": ("prefetch",),
    "TYPED": ("compute", "master", "reduce"),
    "LOSS_SCALE": ("loss_scale",),
    "PEAK": ("peak",),
    "SPLIT": ("split",),
    "STAGE": ("stage",),
    "AUTO": ("auto",),
    "MICROBATCHES": ("microbatches",),
}
"""The words that each keyword terminal stands for."""

_THINGS = {
    "NAME": "a name",
    "STRING": "a quoted string",
    "INT": "an integer",
    "FLOAT": "a float",
    "SIZE": "a size such as `512MiB`",
    "ORDER": "the name of a schedule",
    "PATH": "a name or an index",
    "OP": "a collective",
    "PHASE": "a phase",
    "COMPARISON": "a comparison",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "EQUAL": "`=`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "SLASH": "`/`",
    "DOT": "`.`",
    "STAR": "`*`",
    "PLUS": "`+`",
    "QMARK": "`?`",
    "UNDERSCORE": "`_`",
    "_REST": "`...`",
    "$END": "the end of the file",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Where an attempt to parse stopped, and which terminals were possible there."""

    offset: int
    previous_end: int | None
    expected: frozenset[str]


class Syntax:
    """One text with its tokens, and the places that look like the start of a statement."""

    def __init__(self, source: Source, tokens: list[Token]) -> None:
        self.source = source
        self.tokens = [token for token in tokens if token.kind != "comment"]

    @cached_property
    def starts(self) -> list[Token]:
        """The tokens that look like the start of a statement."""
        return statement_starts(self.tokens)

    def blanked(self, begin: int) -> str:
        """The text with everything before an offset made blank, so that places stay."""
        text = self.source.text
        return "".join("\n" if char == "\n" else " " for char in text[:begin]) + text[begin:]

    def token_at(self, offset: int) -> Token | None:
        """The token that covers an offset, or the next one."""
        return next((token for token in self.tokens if token.end > offset), None)

    def statement_of(self, offset: int, begin: int) -> int:
        """The offset at which the statement around an offset starts."""
        return max((t.start for t in self.starts if begin <= t.start < offset), default=begin)

    def next_statement(self, offset: int, begin: int) -> int | None:
        """The offset of the next statement, after the one that starts at `begin`."""
        return next((t.start for t in self.starts if t.start >= offset and t.start > begin), None)


def lexical_findings(syntax: Syntax) -> list[Diagnostic]:
    """Strings that are never closed or in single quotes, and characters that mean nothing."""
    found: list[Diagnostic] = []
    done = -1
    for token in syntax.tokens:
        if token.kind == "unclosed":
            span = syntax.source.span(token.start, token.end)
            help = 'end it with `"` on the same line'
            found.append(error("SH0104", "the string is never closed", span, help=help))
        if token.kind == "stray" and token.start >= done:
            finding, end = stray(syntax.source, token)
            found += [finding] if token.start != done else []
            done = end
    return found


def reserved_name(syntax: Syntax, offset: int) -> Diagnostic:
    """`over` or `as` used as a name."""
    token = syntax.token_at(offset)
    assert token is not None
    return error(
        "SH0107",
        f"`{token.text}` is a reserved word",
        syntax.source.span(token.start, token.end),
        help="choose another name; only `over` and `as` are reserved",
    )


def number_too_large(syntax: Syntax, start: int, end: int) -> Diagnostic:
    """A literal without a value."""
    return error(
        "SH0103",
        "the number is too large",
        syntax.source.span(start, end),
        help="integers and byte sizes stay below 2**63, floats are finite",
    )


def explain_failure(syntax: Syntax, failure: Failure, begin: int) -> tuple[Diagnostic, int | None]:
    """The finding for a failed attempt, and the offset at which to start again."""
    unclosed = _unclosed_bracket(syntax, failure, begin)
    if unclosed is not None:
        return unclosed
    found = syntax.token_at(failure.offset)
    start = syntax.statement_of(failure.offset, begin)
    resume = syntax.next_statement(failure.offset, start)
    form = _form(syntax, start, failure.offset)
    if found is not None and found.kind == "word" and _may_start_statement(failure, found):
        return _unknown_statement(syntax, found), syntax.next_statement(found.end, start)
    if found is None or found.start == resume:
        return _cut_short(syntax, failure, found, form), resume
    span = syntax.source.span(found.start, found.end)
    if _lacks_quotes(syntax, found, failure):
        return _unquoted(syntax, found), resume
    if found.text in ("over", "as") and "NAME" in failure.expected:
        return reserved_name(syntax, found.start), resume
    if found.kind == "number" and _is_malformed(found, failure):
        return _malformed_number(syntax, found), resume
    if found.text in _CLOSE and not _open_before(syntax, begin, found.start):
        return error("SH0111", f"`{found.text}` closes nothing", span, help="remove it"), resume
    diagnostic = error(
        "SH0101",
        f"expected {expected_words(failure.expected)}, found {_shown(found.text)}",
        span,
        help=_nearest_keyword(found.text, failure.expected)
        or habit(found, failure.expected)
        or form,
    )
    return diagnostic, resume


def expected_words(expected: frozenset[str]) -> str:
    """A set of terminals in words: `a name or `}``."""
    names = set(expected)
    words: list[str] = []
    statements = {word.upper() for word in STATEMENTS}
    if statements <= names:
        names -= statements | {"$END"}
        words.append("a statement")
    if {"INT", "FLOAT", "SIZE"} <= names:
        names -= {"INT", "FLOAT", "SIZE"}
        words.append("a number")
    for name in sorted(names):
        words += [_THINGS[name]] if name in _THINGS else quote(_WORDS.get(name, (name.lower(),)))
    return join_words(sorted(words, key=lambda word: (word.startswith("`"), word)))


def _form(syntax: Syntax, start: int, offset: int) -> str:
    """How the statement that starts at an offset, or at a line between the two, is written."""
    around = [t for t in syntax.tokens if start <= t.start < offset and t.text in FORMS]
    begins = [
        token
        for token in around
        if token.start == start
        or (token.at_line_start and not _open_before(syntax, start, token.start))
    ]
    if not begins:
        return f"the statements are {join_words(quote(STATEMENTS), 'and')}"
    return f"the statement is written `{FORMS[begins[-1].text]}`"


def _cut_short(syntax: Syntax, failure: Failure, found: Token | None, form: str) -> Diagnostic:
    """The statement ends, at the next one or at the end of the file, before it is complete."""
    end = failure.previous_end
    if end is None:
        end = failure.offset
    what = f"`{found.text}`" if found is not None else "the end of the file"
    line, column = syntax.source.place(end)
    span = syntax.source.span(end, end)
    wide = type(span)(span.file, line, column, line, column + 1)
    message = f"expected {expected_words(failure.expected)}, found {what}"
    return error("SH0101", message, wide, help=form)


def _may_start_statement(failure: Failure, found: Token) -> bool:
    statements = {word.upper() for word in STATEMENTS}
    if not statements <= failure.expected:
        return False
    return found.at_line_start or failure.expected <= statements | {"$END", "PLUS"}


def _unknown_statement(syntax: Syntax, found: Token) -> Diagnostic:
    span = syntax.source.span(found.start, found.end)
    near = difflib.get_close_matches(found.text.lower(), STATEMENTS, n=1, cutoff=0.6)
    known = f"the statements are {join_words(quote(STATEMENTS), 'and')}"
    help = f"did you mean `{near[0]}`" if near else known
    return error("SH0106", f"unknown statement `{found.text}`", span, help=help)


def _lacks_quotes(syntax: Syntax, found: Token, failure: Failure) -> bool:
    """Whether a name stands where a string belongs; before the string, it is a wrong word."""
    if found.kind not in ("word", "mark") or failure.expected - {"STORED"} != {"STRING"}:
        return False
    _, end = whole_name(syntax.source.text, found.start)
    after = next((token for token in syntax.tokens if token.start >= end), None)
    wrong = "STORED" in failure.expected and after is not None and after.kind == "string"
    return not wrong


def _unquoted(syntax: Syntax, found: Token) -> Diagnostic:
    """A name or a pattern without quotes: all of it, up to the next space or bracket."""
    name, end = whole_name(syntax.source.text, found.start)
    return error(
        "SH0101",
        f"expected a quoted string, found {_shown(name)}",
        syntax.source.span(found.start, end),
        help=f'put it in quotes: `"{name}"`',
    )


def _is_malformed(found: Token, failure: Failure) -> bool:
    return not found.text.isdigit() and bool({"INT", "FLOAT", "SIZE"} & failure.expected)


def _malformed_number(syntax: Syntax, found: Token) -> Diagnostic:
    return error(
        "SH0103",
        f"malformed number `{found.text}`",
        syntax.source.span(found.start, found.end),
        help="sizes are written `512MiB`, with KiB, MiB, GiB or TiB; names start with a letter",
    )


def _nearest_keyword(word: str, expected: Iterable[str]) -> str | None:
    keywords = [keyword for name in expected for keyword in _WORDS.get(name, ())]
    near = difflib.get_close_matches(word, sorted(keywords), n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`" if near else None


def _open_before(syntax: Syntax, begin: int, end: int) -> list[Token]:
    """The brackets still open between two offsets."""
    stack: list[Token] = []
    for token in syntax.tokens:
        if token.kind != "mark" or not begin <= token.start < end:
            continue
        if token.text in _OPEN:
            stack.append(token)
        elif stack and _CLOSE.get(token.text) == stack[-1].text:
            stack.pop()
    return stack


def _unclosed_bracket(
    syntax: Syntax, failure: Failure, begin: int
) -> tuple[Diagnostic, int | None] | None:
    """A bracket that is still open where the next statement, or the end of the file, stands."""
    start = syntax.statement_of(failure.offset, begin)
    around = [t for t in syntax.starts if begin <= t.start <= failure.offset]
    for statement in around:
        still_open = _open_before(syntax, begin, statement.start)
        if still_open:
            return _never_closed(syntax, still_open[-1], statement), statement.start
    if syntax.token_at(failure.offset) is None:
        still_open = _open_before(syntax, start, failure.offset)
        if still_open:
            return _never_closed(syntax, still_open[-1], None), None
    return None


def _never_closed(syntax: Syntax, opener: Token, statement: Token | None) -> Diagnostic:
    labels = []
    if statement is not None:
        place = syntax.source.span(statement.start, statement.end)
        labels.append(Label(place, "the next statement begins here"))
    return error(
        "SH0105",
        f"`{opener.text}` is never closed",
        syntax.source.span(opener.start, opener.end),
        labels=labels,
        help=f"add `{_OPEN[opener.text]}`",
    )


def _shown(text: str) -> str:
    """A token in a message; what cannot be printed is escaped."""
    if len(text) > 40:
        text = text[:37] + "..."
    return f"`{text}`" if text.isprintable() else f"`{text.encode('unicode_escape').decode()}`"
