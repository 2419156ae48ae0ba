"""Statements against names: which tensors each matches, which statement is in force."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from shardlang.bind.layouts import Misfit, bind_layout
from shardlang.bind.types import Shape
from shardlang.grammar.cap import MOST_FINDINGS
from shardlang.grammar.diagnostics import Diagnostic, Label, Span, error, join_words, quote
from shardlang.grammar.patterns import Pattern, nearest_to_pattern
from shardlang.ir.mesh import Mesh
from shardlang.ir.records import Stated
from shardlang.spec.types import LayoutExpr


class Statement(Protocol):
    """A statement that a pattern gives to many tensors."""

    @property
    def pattern(self) -> Pattern: ...
    @property
    def span(self) -> Span: ...


class LaidOut(Statement, Protocol):
    """A statement with a layout."""

    @property
    def layout(self) -> LayoutExpr: ...


_StatementT = TypeVar("_StatementT", bound=Statement)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a family of statements speaks of, for messages."""

    singular: str
    plural: str
    unmatched: str = "SH0301"


@dataclass(slots=True)
class Findings:
    """The findings so far; faults that one statement has on many tensors become one."""

    mesh: Mesh
    found: list[Diagnostic] = field(default_factory=list)

    def bind(self, statement: LaidOut, names: Mapping[str, Shape]) -> dict[str, Stated]:
        """Apply a statement's layout to every tensor it is in force for."""
        bound: dict[str, Stated] = {}
        misfits: dict[Misfit, list[str]] = {}
        for name, shape in names.items():
            result = bind_layout(statement.layout, shape, self.mesh, statement.span)
            if isinstance(result, Misfit):
                misfits.setdefault(result, []).append(name)
            else:
                bound[name] = result
        self.found += [_misfit(fault, named) for fault, named in misfits.items()]
        return bound

    def unmatched(self, pattern: Pattern, span: Span, kind: Kind, names: Sequence[str]) -> None:
        """Report a pattern that matches nothing, with the nearest names if it will be shown."""
        near = len(self.found) < MOST_FINDINGS
        self.found.append(_unmatched(pattern, span, kind, names, near))

    def overridden(self, statement: Statement, later: Sequence[Statement], count: int) -> None:
        """Note that later statements take a statement's place for some tensors."""
        message = f"`{statement.pattern}` is overridden for {count} of the tensors it matches"
        labels = tuple(Label(other.span, "in force for those") for other in later)
        note = Diagnostic("SH0223", "note", message, statement.span, labels)
        self.found.append(note)


def _unmatched(
    pattern: Pattern, span: Span, kind: Kind, names: Sequence[str], compare: bool
) -> Diagnostic:
    near = nearest_to_pattern(pattern.text, names) if compare else []
    if near:
        what = kind.singular if len(near) == 1 else kind.plural
        verb = "is" if len(near) == 1 else "are"
        help = f"the nearest {what} {verb} {join_words(quote(near), 'and')}"
    elif names:
        some = [*names[:4], "..."] if len(names) > 4 else list(names)
        help = f"the {kind.plural} are {join_words(quote(some), 'and')}"
    else:
        help = f"the model has no {kind.plural}"
    article = "an" if kind.singular[0] in "aeiou" else "a"
    word = "matches no" if pattern.literal is None else f"is not {article}"
    return error(
        kind.unmatched, f"`{pattern}` {word} {kind.singular} of the model", span, help=help
    )


def _misfit(fault: Misfit, names: Sequence[str]) -> Diagnostic:
    notes = []
    if len(names) > 1:
        others = f"{len(names) - 1} more tensor{'s' if len(names) > 2 else ''}"
        notes.append(f"the same is true of {others}, such as `{names[1]}`")
    return error(
        fault.code, f"`{names[0]}` {fault.problem}", fault.span, notes=notes, help=fault.help
    )


def in_force(
    statements: Sequence[_StatementT],
    names: Iterable[str],
    aliases: Mapping[str, str],
    kind: Kind,
    findings: Findings,
) -> dict[str, _StatementT]:
    """The last statement that matches each name; aliases count as their tensor."""
    names = list(names)
    targets = {**{name: name for name in names}, **aliases}
    every = list(targets)
    owner: dict[str, _StatementT] = {}
    taken: dict[int, dict[_StatementT, int]] = {}
    index = {id(statement): i for i, statement in enumerate(statements)}
    for statement in statements:
        matched = dict.fromkeys(targets[name] for name in statement.pattern.select(every))
        if not matched:
            findings.unmatched(statement.pattern, statement.span, kind, every)
        for name in matched:
            earlier = owner.get(name)
            if earlier is not None and earlier.pattern != statement.pattern:
                losses = taken.setdefault(index[id(earlier)], {})
                losses[statement] = losses.get(statement, 0) + 1
            owner[name] = statement
    for i, losses in taken.items():
        findings.overridden(statements[i], list(losses), sum(losses.values()))
    return owner
