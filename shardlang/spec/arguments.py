"""Named arguments of an optimizer, a group or a schedule: known, of the right kind, in range."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from sys import float_info

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import Diagnostic, Span, error, join_words, quote
from shardlang.grammar.patterns import nearest
from shardlang.ir.optimizers import ArgumentKind
from shardlang.spec.scope import Scope, kind_of
from shardlang.spec.types import Arguments, LiteralValue

_WANTED: dict[ArgumentKind, str] = {
    "number": "a number of at least 0",
    "positive": "a number above 0, or leave it out",
    "pair": "two numbers, as in `[0.9, 0.95]`",
    "flag": "`true` or `false`",
    "text": "a string",
    "numbers": "a list of numbers, as in `[30, 80]`",
}
_BETAS = "two numbers from 0 up to but without 1, as in `[0.9, 0.95]`"


def named_arguments(
    nodes: Sequence[t.Argument], scope: Scope, most_positional: int = 0
) -> tuple[list[LiteralValue], Arguments]:
    """The positional and the named arguments, with findings for misplaced ones."""
    positional: list[LiteralValue] = []
    named: dict[str, LiteralValue] = {}
    for node in nodes:
        value = _value(node.value, scope)
        if node.name is None and (len(positional) == most_positional or named):
            message = "unexpected argument without a name"
            scope.report(error("SH0216", message, node.span, help="write `name = value`"))
        elif node.name is not None and node.name.text in named:
            message = f"argument `{node.name.text}` is given twice"
            scope.report(error("SH0216", message, node.name.span, help="drop one of them"))
        elif value is not None and node.name is None:
            positional.append(value)
        elif value is not None and node.name is not None:
            named[node.name.text] = value
    return positional, tuple(named.items())


def _value(node: t.Value, scope: Scope) -> LiteralValue | None:
    if not isinstance(node, t.ListValue):
        return scope.scalar(node)
    items = [scope.scalar(item) for item in node.items]
    if any(item is None for item in items):
        return None
    return tuple(item for item in items if item is not None)


def checked_arguments(
    owner: str,
    nodes: Sequence[t.Argument],
    known: Mapping[str, ArgumentKind],
    code: str,
    scope: Scope,
) -> Arguments | None:
    """The named arguments; None, with findings, where one is unknown or cannot have its value.

    Args:
        owner: what they are of, for messages.
        known: what it may be given.
    """
    _, named = named_arguments(nodes, scope)
    places = {a.name.text: (a.name.span, a.value.span) for a in nodes if a.name is not None}
    found = [_finding(owner, name, value, known, code, *places[name]) for name, value in named]
    for finding in filter(None, found):
        scope.report(finding)
    return None if any(found) or len(named) < len(nodes) else named


def _finding(
    owner: str,
    name: str,
    value: LiteralValue,
    known: Mapping[str, ArgumentKind],
    code: str,
    name_span: Span,
    value_span: Span,
) -> Diagnostic | None:
    if name not in known:
        near = nearest(name, known)
        listed = f"the arguments are {join_words(quote(known), 'and')}"
        help = f"did you mean `{near[0]}`" if near else listed
        return error(code, f"`{owner}` has no argument `{name}`", name_span, help=help)
    if _fits(value, known[name], name):
        return None
    wanted = _BETAS if name == "betas" else _WANTED[known[name]]
    listed = f"`[{', '.join(map(str, value))}]`" if isinstance(value, tuple) else f"`{value}`"
    shown = kind_of(value) if isinstance(value, (str, bool)) else listed
    return error(code, f"`{name}` cannot be {shown}", value_span, help=f"write {wanted}")


def _fits(value: LiteralValue, kind: ArgumentKind, name: str) -> bool:
    if kind == "flag":
        return isinstance(value, bool)
    if kind == "text":
        return isinstance(value, str)
    if kind in ("number", "positive"):
        least = 0 if kind == "number" else float_info.min
        return not isinstance(value, (str, tuple, bool)) and value >= least
    if not isinstance(value, tuple):
        return False
    numbers = [v for v in value if not isinstance(v, (str, bool))]
    if len(numbers) < len(value):
        return False
    most = 1 if name == "betas" else float("inf")
    return kind == "numbers" or (len(numbers) == 2 and all(0 <= v < most for v in numbers))


def tried(
    make: Callable[[Mapping[str, LiteralValue]], object],
    named: Arguments,
    nodes: Sequence[t.Argument],
    whole: Span,
) -> tuple[str, Span] | None:
    """What torch says against some arguments, and the place of the one that is to blame.

    Args:
        make: makes what takes them.
        whole: the place where no single one is to blame.
    """
    said = _said(make, dict(named))
    if said is None:
        return None
    places = {a.name.text: a.value.span for a in nodes if a.name is not None}
    blamed = (n for n, value in named if _said(make, {n: value}) == said)
    return said, places.get(next(blamed, ""), whole)


def _said(
    make: Callable[[Mapping[str, LiteralValue]], object], named: Mapping[str, LiteralValue]
) -> str | None:
    try:
        make(named)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as failure:
        return str(failure).splitlines()[0].rstrip(".")
    return None
