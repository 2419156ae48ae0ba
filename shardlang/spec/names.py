"""Entering the declared names into a scope: lets (and `--set`), the mesh, dims."""

from __future__ import annotations

from collections.abc import Container, Mapping

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import (
    Diagnostic,
    Label,
    Span,
    error,
    join_words,
    quote,
    start_of_file,
)
from shardlang.grammar.parser import parse
from shardlang.grammar.patterns import nearest
from shardlang.ir.mesh import BANDWIDTHS, Axis, Mesh
from shardlang.spec.gather import Gathered
from shardlang.spec.scope import Scope, kind_of
from shardlang.spec.types import Scalar

COMMAND_LINE = "<command line>"
"""The file that findings about `--set` name."""

_MOST_DEVICES, _MOST_AXES = 1 << 20, 64


def declare_lets(
    gathered: Gathered, sets: Mapping[str, str], scope: Scope
) -> tuple[tuple[str, Scalar], ...]:
    """Enter every let with its final value; return the `--set` values."""
    lets: dict[str, t.Let] = {}
    for fact in gathered.facts:
        if isinstance(fact.statement, t.Let) and scope.declare(fact.statement.name, "let"):
            lets[fact.statement.name.text] = fact.statement
    scope.lets = _values_of(lets, scope)
    done: list[tuple[str, Scalar]] = []
    for name, text in sets.items():
        value = _set(name, text, scope)
        if value is not None:
            done.append((name, value))
    given = dict(done)
    for name, (end, _) in _ends_of(lets, given).items():
        scope.lets[name] = given.get(end, scope.lets[name])
    return tuple(done)


def _values_of(lets: Mapping[str, t.Let], scope: Scope) -> dict[str, Scalar | None]:
    """The value of every let, and a finding for each that has none of its own fault."""
    scope.used.update(after for name in lets if (after := _named_by(name, lets)) is not None)
    ends = _ends_of(lets)
    for first in dict.fromkeys(end for end, circular in ends.values() if circular):
        scope.report(_circle(lets[first]))
    values = {
        name: scope.scalar(let.value) if _named_by(name, lets) is None else None
        for name, let in lets.items()
    }
    return {name: values[end] for name, (end, _) in ends.items()}


def _named_by(name: str, lets: Mapping[str, t.Let]) -> str | None:
    """The let that a let stands for, if it does for one."""
    value = lets[name].value
    return value.text if isinstance(value, t.Ident) and value.text in lets else None


def _ends_of(lets: Mapping[str, t.Let], stops: Container[str] = ()) -> dict[str, tuple[str, bool]]:
    """Where every let leads to: a literal or a stop, or the first let of a circle and True.

    Each let is passed once, however long the chains are.
    """
    order = {name: place for place, name in enumerate(lets)}
    ends: dict[str, tuple[str, bool]] = {}
    for name in lets:
        path: dict[str, None] = {}
        at: str | None = name
        while at is not None and at not in ends and at not in path:
            path[at] = None
            last, at = at, None if at in stops else _named_by(at, lets)
        if at is not None and at not in ends:
            members = list(path)[list(path).index(at) :]
            ends[at] = (min(members, key=order.__getitem__), True)
        end = (last, False) if at is None else ends[at]
        ends.update(dict.fromkeys(path, end))
    return ends


def _circle(let: t.Let) -> Diagnostic:
    return error(
        "SH0233",
        f"`{let.name.text}` stands for itself",
        let.value.span,
        help="give one let of the circle a literal",
    )


def _set(name: str, text: str, scope: Scope) -> Scalar | None:
    """The value of one `--set`, of the type that the let has."""
    place = start_of_file(COMMAND_LINE)
    if name not in scope.lets:
        near = nearest(name, scope.lets)
        known = f"the lets are {join_words(quote(scope.lets), 'and')}" if scope.lets else None
        help = f"did you mean `{near[0]}`" if near else known or f"write `let {name} = ...` first"
        message = f"`--set {name}` names a let that does not exist"
        scope.report(error("SH0218", message, place, help=help))
        return None
    declared = scope.lets[name]
    value = _parsed(text, declared)
    if declared is not None and (value is None or not _same_kind(value, declared)):
        message = f"`--set {name}={text}` is not {kind_of(declared)}"
        let = Label(scope.places[name][1], "declared here")
        help = f"`{name}` is {kind_of(declared)}"
        scope.report(error("SH0219", message, place, labels=[let], help=help))
        return None
    return float(value) if isinstance(declared, float) and value is not None else value


def _parsed(text: str, declared: Scalar | None) -> Scalar | None:
    if isinstance(declared, str):
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    tree, _ = parse(f"let x = {text}", COMMAND_LINE)
    if tree is None or len(tree.statements) != 1 or not isinstance(tree.statements[0], t.Let):
        return None
    return Scope().scalar(tree.statements[0].value)


def _same_kind(value: Scalar, declared: Scalar) -> bool:
    if isinstance(declared, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(declared)


Roles = dict[str, t.AxisRole]
"""What axes are declared as, by name."""


def declare_mesh(gathered: Gathered, scope: Scope) -> tuple[Mesh | None, Roles]:
    """Enter the axes of the last mesh; return it with what its axes are declared as."""
    meshes = [f.statement for f in gathered.facts if isinstance(f.statement, t.Mesh)]
    if not meshes or not meshes[-1].items:
        span = meshes[-1].span if meshes else start_of_file(gathered.root)
        help = "write `mesh { dp = 2 }` with the axes of the devices"
        scope.report(error("SH0201", "the spec has no mesh axes", span, help=help))
        return None, {}
    if len(meshes[-1].items) > _MOST_AXES:
        message = f"the mesh has {len(meshes[-1].items)} axes, more than {_MOST_AXES}"
        scope.report(error("SH0225", message, meshes[-1].span, help="leave out those of size 1"))
        return None, {}
    axes: list[Axis] = []
    for item in meshes[-1].items:
        size = scope.integer(item.size, f"the size of axis `{item.name.text}`", "SH0207")
        if scope.declare(item.name, "axis"):
            scope.axes[item.name.text] = size or 1
            axes.append(Axis(item.name.text, size or 1, _link(item, scope)))
    mesh = Mesh(tuple(axes))
    if mesh.devices > _MOST_DEVICES:
        message = f"the mesh has {mesh.devices} devices, more than {_MOST_DEVICES}"
        scope.report(error("SH0225", message, meshes[-1].span, help="make an axis smaller"))
        return None, {}
    return mesh, {item.name.text: item.role for item in meshes[-1].items if item.role}


def _link(item: t.AxisDecl, scope: Scope) -> str | None:
    """The link that an axis runs on; a finding where no bandwidth is known of it."""
    if item.link is None or item.link.text in BANDWIDTHS:
        return item.link.text if item.link else None
    near = nearest(item.link.text, BANDWIDTHS)
    known = f"the links are {join_words(quote(BANDWIDTHS), 'and')}"
    help = f"did you mean `{near[0]}`" if near else known
    scope.report(error("SH0234", f"unknown link `{item.link.text}`", item.link.span, help=help))
    return None


def declare_dims(gathered: Gathered, scope: Scope) -> None:
    """Enter the logical dims; a dim may name axes and dims above it."""
    entries: dict[str, t.DimsEntry] = {}
    for fact in gathered.facts:
        for entry in fact.statement.items if isinstance(fact.statement, t.Dims) else ():
            for name in entry.names:
                if scope.declare(name, "dim"):
                    entries.pop(name.text, None)
                    entries[name.text] = entry
    resolved: dict[Span, tuple[str, ...]] = {}
    for name_text, entry in entries.items():
        if entry.span not in resolved:
            axes = scope.axes_of(entry.product) if entry.product is not None else ()
            resolved[entry.span] = axes or ()
        scope.dims[name_text] = resolved[entry.span]
