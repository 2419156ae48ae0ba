"""The optimizers that a spec can name, and what each of their arguments may be."""

from __future__ import annotations

from typing import Literal, TypeAlias

from shardlang.grammar.diagnostics import Diagnostic, Span, error, join_words, quote
from shardlang.grammar.patterns import nearest
from shardlang.spec.scope import kind_of
from shardlang.spec.types import LiteralValue

ArgumentKind: TypeAlias = Literal["number", "pair", "flag"]

_COMMON: dict[str, ArgumentKind] = {"lr": "number", "weight_decay": "number", "clip": "number"}
_ADAM: dict[str, ArgumentKind] = {**_COMMON, "betas": "pair", "eps": "number"}

OPTIMIZERS: dict[str, dict[str, ArgumentKind]] = {
    "sgd": {**_COMMON, "momentum": "number", "nesterov": "flag"},
    "adam": _ADAM,
    "adamw": _ADAM,
}
"""Argument kinds by optimizer; `clip` is the greatest norm of all gradients together."""

_WANTED = {
    "number": "a number of at least 0",
    "pair": "two numbers from 0 up to but without 1, as in `[0.9, 0.95]`",
    "flag": "`true` or `false`",
}


def check_optimizer_name(name: str, span: Span) -> Diagnostic | None:
    """A finding where there is no such optimizer."""
    if name in OPTIMIZERS:
        return None
    near = nearest(name, OPTIMIZERS)
    help = f"did you mean `{near[0]}`" if near else f"write {join_words(quote(OPTIMIZERS))}"
    return error("SH0220", f"unknown optimizer `{name}`", span, help=help)


def check_optimizer_argument(
    optimizer: str, name: str, value: LiteralValue, name_span: Span, value_span: Span
) -> Diagnostic | None:
    """A finding where the optimizer has no such argument, or it cannot have that value."""
    kinds = OPTIMIZERS[optimizer]
    if name not in kinds:
        near = nearest(name, kinds)
        known = f"the arguments are {join_words(quote(kinds), 'and')}"
        help = f"did you mean `{near[0]}`" if near else known
        return error("SH0221", f"`{optimizer}` has no argument `{name}`", name_span, help=help)
    if _fits(value, kinds[name]):
        return None
    message = f"`{name}` cannot be {_shown(value)}"
    return error("SH0221", message, value_span, help=f"write {_WANTED[kinds[name]]}")


def _shown(value: LiteralValue) -> str:
    return kind_of(value) if isinstance(value, (str, bool, tuple)) else f"`{value}`"


def _fits(value: LiteralValue, kind: ArgumentKind) -> bool:
    if kind == "flag":
        return isinstance(value, bool)
    if kind == "number":
        return _is_number(value) and not isinstance(value, (str, tuple)) and value >= 0
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(_is_number(v) and not isinstance(v, str) and 0 <= v < 1 for v in value)
    )


def _is_number(value: LiteralValue) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
