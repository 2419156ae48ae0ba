"""Lark's parse tree to the nodes that statements are made of: one function per rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from lark import Token

from shardlang.grammar import leaves as t
from shardlang.grammar.rule import Rule, chosen

_NodeT = TypeVar("_NodeT")


def either(rule: Rule, makers: Mapping[str, Callable[[Rule], _NodeT]]) -> _NodeT:
    """The node of a rule that is one of several."""
    return makers[rule.name](rule)


def ident(rule: Rule, index: int) -> t.Ident:
    """The name that the child at `index` is."""
    return _name(rule, rule.token(index))


def maybe_ident(rule: Rule, index: int) -> t.Ident | None:
    """The name that the child at `index` is, if it is there."""
    return ident(rule, index) if rule.has(index) else None


def text(rule: Rule, index: int) -> t.Text:
    """The string that the child at `index` is."""
    token = rule.token(index)
    return t.Text(str(token)[1:-1], span=rule.span_of(token))


def texts(rule: Rule) -> tuple[t.Text, ...]:
    """Strings, one after the other."""
    return tuple(text(rule, i) for i in range(len(rule.tokens())))


def maybe_text(rule: Rule, index: int) -> t.Text | None:
    """The string that the child at `index` is, if it is there."""
    return text(rule, index) if rule.has(index) else None


def scalar(rule: Rule) -> t.Scalar:
    """A number, a size in bytes, a string or a name."""
    token = rule.token(0)
    span = rule.span_of(token)
    if token.type == "INT":
        return t.Number(int(token), str(token), span=span)
    if token.type == "FLOAT":
        return t.Number(float(token), str(token), span=span)
    if token.type == "SIZE":
        return t.Size(int(token[:-3]), str(token[-3:]), span=span)
    return ref(rule)


def scalars(rule: Rule) -> tuple[t.Scalar, ...]:
    """The numbers, sizes, strings and names of a list."""
    return tuple(map(scalar, rule.rules()))


def ref(rule: Rule) -> t.Ref:
    """A name, bare or quoted."""
    return text(rule, 0) if rule.token(0).type == "STRING" else ident(rule, 0)


def refs(rule: Rule) -> tuple[t.Ref, ...]:
    """Names, bare or quoted."""
    return tuple(map(ref, rule.rules()))


def names(rule: Rule) -> tuple[t.Ident, ...]:
    """Bare names."""
    return tuple(_name(rule, token) for token in rule.tokens())


def _name(rule: Rule, token: Token) -> t.Ident:
    return t.Ident(str(token), span=rule.span_of(token))


def product(rule: Rule) -> t.Product:
    """`a*b`."""
    return t.Product(tuple(map(_axes, rule.rules())), span=rule.span)


def _axes(rule: Rule) -> t.Ident | t.Part:
    """An axis, a dim, or a part of an axis."""
    name, after, shards = ident(rule, 0), rule.maybe_token(1), rule.maybe_token(2)
    if after is None and shards is None:
        return name
    count = None if shards is None else int(shards)
    return t.Part(name, 1 if after is None else int(after), count, span=rule.span)


def _list(rule: Rule) -> t.ListValue:
    return t.ListValue(scalars(rule), span=rule.span)


def _value_of(rule: Rule) -> t.Value:
    return _list(rule) if rule.name == "list" else scalar(rule)


def _argument(rule: Rule) -> t.Argument:
    if rule.name == "positional":
        return t.Argument(None, _value_of(rule.rule(0)), span=rule.span)
    return t.Argument(ident(rule, 0), _value_of(rule.rule(1)), span=rule.span)


def arguments(rule: Rule | None) -> tuple[t.Argument, ...]:
    """The arguments in parentheses, if there are any."""
    return () if rule is None else tuple(map(_argument, rule.rules()))


def selector(rule: Rule) -> t.Selector:
    """`.out.1`."""
    side = chosen(rule.token(0), t.SIDES)
    return t.Selector(side, tuple(map(str, rule.tokens(1))), span=rule.span)


def layout(rule: Rule) -> t.Layout:
    """`[entry, ...] +axis`."""
    parts = rule.rules()
    partial = tuple(_axes(part.rule(0)) for part in parts if part.name == "partial")
    entries = tuple(either(part, _ENTRIES) for part in parts if part.name != "partial")
    return t.Layout(entries, partial, span=rule.span)


def _whole(rule: Rule) -> t.WholeEntry:
    return t.WholeEntry(span=rule.span)


def open_entry(rule: Rule) -> t.OpenEntry:
    """`?`."""
    return t.OpenEntry(span=rule.span)


def _rest(rule: Rule) -> t.RestEntry:
    return t.RestEntry(span=rule.span)


def _sharded(rule: Rule) -> t.AxesEntry:
    blocks = rule.maybe_rule(1)
    sizes = () if blocks is None else scalars(blocks)
    return t.AxesEntry(product(rule.rule(0)), sizes, span=rule.span)


_ENTRIES: dict[str, Callable[[Rule], t.Entry]] = {
    "whole": _whole,
    "open": open_entry,
    "rest": _rest,
    "sharded": _sharded,
}
