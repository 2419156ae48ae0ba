"""One text for a spec and all that it uses, which stands alone: in any folder, without `--set`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import Span
from shardlang.grammar.formatter import format_node, format_tree
from shardlang.spec.gather import gather_file
from shardlang.spec.types import Scalar, Spec


def flat_text(spec: Spec) -> str:
    """The canonical text of all statements of a spec, in their order.

    A let has the value of its `--set`, and paths are absolute. What a later file declares anew is
    left out where it stood before. Empty where the file of the spec is gone.
    """
    found = (_with_paths(one, spec) for one in _in_force(spec))
    return format_tree(t.Tree(tuple(found)))


def bare_text(spec: Spec) -> str:
    """The canonical text of all statements in force, without comments and where things lie.

    So two copies of a spec in two places have the same. Empty where the file is gone.
    """
    return "".join(format_node(_without_paths(one)) + "\n" for one in _in_force(spec))


def _in_force(spec: Spec) -> list[t.Statement]:
    """The statements of a spec and all that it uses, each of which says something."""
    if not spec.path.is_file():
        return []
    stated = [fact.statement for fact in gather_file(spec.path).facts]
    last = _last(stated)
    return [kept for one in stated if (kept := _alone(one, spec, last)) is not None]


_Last = dict[tuple[type[t.Node], str], Span]
"""Where what may be declared in several files is declared last: lets and dims by name."""


def _last(statements: Iterable[t.Statement]) -> _Last:
    found: _Last = {}
    for one in statements:
        if isinstance(one, t.Let):
            found[t.Let, one.name.text] = one.span
        elif isinstance(one, t.Dims):
            found |= {(t.Dims, x.text): entry.span for entry in one.items for x in entry.names}
        elif isinstance(one, _ONCE):
            found[type(one), ""] = one.span
    return found


_ONCE = (t.Mesh, t.Model, t.Data, t.Evaluate)


def _alone(statement: t.Statement, spec: Spec, last: _Last) -> t.Statement | None:
    """A statement that needs no `--set`; None for one that means nothing."""
    if isinstance(statement, t.Dims):
        kept = [_last_names(entry, last) for entry in statement.items]
        return replace(statement, items=tuple(entry for entry in kept if entry.names))
    name = statement.name.text if isinstance(statement, t.Let) else ""
    if last.get((type(statement), name), statement.span) != statement.span:
        return None
    if isinstance(statement, t.Let) and name in spec.set_values:
        return replace(statement, value=_node(spec.set_values[name]))
    return statement


def _last_names(entry: t.DimsEntry, last: _Last) -> t.DimsEntry:
    """A line of `dims`, of which names remain that no later one declares."""
    names = tuple(x for x in entry.names if last[t.Dims, x.text] == entry.span)
    return replace(entry, names=names)


def _with_paths(statement: t.Statement, spec: Spec) -> t.Statement:
    """A statement in force, whose path does not depend on the folder that it stands in."""
    if isinstance(statement, t.Model):
        return _model(statement, spec)
    if isinstance(statement, t.Data) and spec.data is not None:
        return replace(statement, path=_text(spec.data.path))
    if isinstance(statement, t.Evaluate) and spec.evaluate is not None:
        source = spec.evaluate.source
        return statement if source is None else replace(statement, source=_text(source))
    return statement


def _without_paths(statement: t.Statement) -> t.Statement:
    """A statement without the paths of the machine that reads it."""
    if isinstance(statement, t.Model):
        function = t.Text(statement.source.text.rpartition(":")[2])
        named = tuple(one for one in statement.arguments if one.name is not None)
        return replace(statement, source=function, arguments=named)
    if isinstance(statement, t.Data):
        return replace(statement, path=t.Text("…"))
    if isinstance(statement, t.Evaluate) and statement.source is not None:
        return replace(statement, source=t.Text("…"))
    return statement


def _model(statement: t.Model, spec: Spec) -> t.Model:
    model = spec.model
    if model.function is not None:
        return replace(statement, source=t.Text(f"{model.path}:{model.function}"))
    arguments = [
        one if one.name is not None else replace(one, value=_text(model.path))
        for one in statement.arguments
    ]
    return replace(statement, arguments=tuple(arguments))


def _text(path: Path) -> t.Text:
    return t.Text(str(path))


def _node(value: Scalar) -> t.Scalar:
    """The node of a value, as a let has it."""
    if isinstance(value, str):
        return t.Text(value)
    if isinstance(value, bool):
        return t.Ident(str(value).lower())
    return t.Number(value)
