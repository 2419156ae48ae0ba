"""Arguments of a model, as the command line gives them: `width=64`, `attn_implementation=eager`."""

from __future__ import annotations

from collections.abc import Iterable

from shardlang.capture import CaptureError
from shardlang.grammar import tree as t
from shardlang.grammar.parser import parse
from shardlang.spec.scope import CONSTANTS


def parse_arguments(texts: Iterable[str]) -> tuple[t.Argument, ...]:
    """Arguments of a `model` statement; a bare word is a string.

    Raises:
        CaptureError: a text is not a name and value, or a name is given twice.
    """
    found: dict[str, t.Argument] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier() or not value:
            message = f"`{text}` is not an argument"
            raise CaptureError("SH0351", message, help="write `--arg width=64`")
        if name in found:
            raise CaptureError("SH0351", f"argument `{name}` is given twice")
        found[name] = t.Argument(t.Ident(name), _literal(value))
    return tuple(found.values())


def _literal(text: str) -> t.Value:
    """A value as the language has it, else the text itself."""
    tree, _ = parse(f'model "m"(x = {text})')
    model = tree.statements[0] if tree is not None and len(tree.statements) == 1 else None
    if isinstance(model, t.Model) and len(model.arguments) == 1:
        value = model.arguments[0].value
        if not isinstance(value, t.Ident) or value.text in CONSTANTS:
            return value
    return t.Text(text)


def values_of(arguments: Iterable[t.Argument]) -> dict[str, object]:
    """The values of arguments by name."""
    return {a.name.text: _value(a.value) for a in arguments if a.name is not None}


def _value(node: t.Value) -> object:
    if isinstance(node, t.ListValue):
        return tuple(_value(item) for item in node.items)
    if isinstance(node, t.Number):
        return node.value
    if isinstance(node, t.Ident):
        return CONSTANTS[node.text]
    assert isinstance(node, t.Text)
    return node.text
