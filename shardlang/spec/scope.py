"""The names of a spec: lets, axes and dims share one namespace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from shardlang.grammar import tree as t
from shardlang.grammar.cap import MOST_FINDINGS
from shardlang.grammar.diagnostics import Diagnostic, Label, Span, error, join_words, quote
from shardlang.grammar.patterns import Pattern, PatternError, compile_pattern, nearest
from shardlang.spec.parts import Parts
from shardlang.spec.types import Scalar

Kind: TypeAlias = Literal["let", "axis", "dim"]
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
CONSTANTS = {"true": True, "false": False}


@dataclass(slots=True)
class Scope:
    """What every name stands for, the findings so far, and which names were used.

    Attributes:
        lets: the value of each let; None where it has none because of an error.
        dims: the axes of each logical dim, `()` for one declared `_`.
        places: kind and place of every declared name.
        stages: the axis of a pipeline as its statement names it.
        clashing: the names declared twice, of which nothing more is said.
        parts: the axes with their sizes, and the parts of them that are named.
    """

    lets: dict[str, Scalar | None] = field(default_factory=dict)
    parts: Parts = field(default_factory=lambda: Parts({}))
    dims: dict[str, tuple[str, ...]] = field(default_factory=dict)
    places: dict[str, tuple[Kind, Span]] = field(default_factory=dict)
    stages: t.Ident | None = None
    used: set[str] = field(default_factory=set)
    clashing: set[str] = field(default_factory=set)
    findings: list[Diagnostic] = field(default_factory=list)

    @property
    def axes(self) -> dict[str, int]:
        """The size of every axis."""
        return self.parts.sizes

    def report(self, finding: Diagnostic) -> None:
        """Add a finding."""
        self.findings.append(finding)

    def near(self, names: Iterable[str]) -> list[str]:
        """The names to compare an unknown one with: none for findings that are not shown."""
        return list(names) if len(self.findings) < MOST_FINDINGS else []

    def declare(self, name: t.Ident, kind: Kind) -> bool:
        """Enter a name; False, with a finding, where another thing has it."""
        held = self.places.get(name.text)
        if name.text in CONSTANTS:
            self.report(
                error(
                    "SH0202", f"`{name.text}` is a constant", name.span, help="choose another name"
                )
            )
            return False
        if (
            held is not None
            and held != (kind, name.span)
            and (held[0] != kind or held[1].file == name.span.file)
        ):
            self.report(_declared_twice(name, kind, *held))
            self.clashing.add(name.text)
            return False
        self.places[name.text] = (kind, name.span)
        return True

    def scalar(self, node: t.Scalar) -> Scalar | None:
        """The value of a literal or let; None, with a finding, where there is none."""
        if isinstance(node, t.Text):
            return node.text
        if isinstance(node, t.Number):
            return node.value
        if isinstance(node, t.Size):
            return node.count * UNITS[node.unit]
        if node.text in CONSTANTS:
            return CONSTANTS[node.text]
        return self._let(node)

    def _let(self, name: t.Ident) -> Scalar | None:
        if name.text in self.lets:
            self.used.add(name.text)
            return self.lets[name.text]
        known = self.near((*self.lets, *CONSTANTS))
        held = self.places.get(name.text)
        if held is not None and name.text not in self.clashing:
            self.report(_wrong_kind(name, held, "a value", known))
        elif held is None:
            help = _near(name.text, known) or f"declare it: `let {name.text} = ...`"
            self.report(error("SH0211", f"unknown name `{name.text}`", name.span, help=help))
        return None

    def integer(self, node: t.Scalar, what: str, code: str, least: int = 1) -> int | None:
        """An integer of at least `least`."""
        value = self.scalar(node)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            message = f"{what} is an integer, not {kind_of(value)}"
            self.report(error("SH0212", message, node.span, help="write a whole number"))
            return None
        if value < least:
            message = f"{what} is at least {least}, not {value}"
            self.report(error(code, message, node.span, help=f"write {least} or more"))
            return None
        return value

    def axes_of(self, product: t.Product, *, stages: bool = False) -> tuple[str, ...] | None:
        """The mesh axes of a product, dims replaced by theirs.

        Args:
            stages: whether the axis of a pipeline may be one of them.
        """
        found = [self.axes_of_name(name, stages=stages) for name in product.names]
        if any(axes is None for axes in found):
            return None
        axes = tuple(axis for part in found for axis in part or ())
        twice = (axis for i, axis in enumerate(axes) if self.parts.shared(axis, axes[:i]))
        if (again := next(twice, None)) is not None:
            self.report(_axis_twice(product, again))
            return None
        return axes

    def axes_of_name(
        self, name: t.Ident | t.Part, *, stages: bool = False
    ) -> tuple[str, ...] | None:
        """The mesh axes of one name, or the part of one."""
        if isinstance(name, t.Part):
            return self._part(name)
        if self.stages is not None and name.text == self.stages.text and not stages:
            self.report(_of_stages(name, self.stages))
            return None
        if name.text in self.axes:
            self.used.add(name.text)
            return (name.text,)
        if name.text in self.dims:
            self.used.add(name.text)
            self.used.update(self.dims[name.text])
            return self.dims[name.text]
        known = self.near((*self.axes, *self.dims))
        held = self.places.get(name.text)
        if name.text in self.clashing:
            return None
        if held is not None and held[0] == "let":
            self.report(_wrong_kind(name, held, "an axis or dim", known))
        elif held is None or held[0] == "dim":
            self.report(_unknown_axis(name, known))
        return None

    def _part(self, node: t.Part) -> tuple[str, ...] | None:
        """The name of a part of an axis."""
        axes = self.axes_of_name(node.name)
        if axes is None:
            return None
        found = self.parts.enter(node, axes)
        if isinstance(found, str):
            return (found,)
        self.report(found)
        return None

    def pattern(self, node: t.Ref) -> Pattern | None:
        """A compiled pattern; None, with a finding, where the text is none."""
        try:
            return compile_pattern(node.text)
        except PatternError as fault:
            span = node.span
            if span.line == span.end_line:
                column = span.column + 1 + fault.offset
                span = Span(span.file, span.line, column, span.line, column + 1)
            message = f"malformed pattern: {fault}"
            help = "a pattern has `*`, `**`, `{a,b}` and `{0..7}`; `\\` takes a character as it is"
            self.report(error("SH0110", message, span, help=help))
            return None


def kind_of(value: object) -> str:
    """The kind of a literal in words."""
    words = {bool: "a truth value", int: "an integer", float: "a float", str: "a string"}
    return words.get(type(value), "a list")


def _near(word: str, known: Iterable[str]) -> str | None:
    near = nearest(word, known)
    return f"did you mean `{near[0]}`" if near else None


_WHOLE = ("none", "null", "replicate", "replicated", "whole", "full")
"""What other libraries call a dim that is not split, in small letters."""


def _unknown_axis(name: t.Ident, known: list[str]) -> Diagnostic:
    listed = f"the declared names are {join_words(quote(known), 'and')}" if known else None
    help = _near(name.text, known) or listed or "declare it in `mesh`"
    if name.text.lower() in _WHOLE:
        help = "a dim that is not split is written `_`"
    return error("SH0205", f"unknown axis or dim `{name.text}`", name.span, help=help)


def _of_stages(name: t.Ident, stages: t.Ident) -> Diagnostic:
    return error(
        "SH0262",
        f"axis `{name.text}` splits the model into stages, and no tensor",
        name.span,
        labels=[Label(stages.span, "its pipeline is stated here")],
        help="split tensors over another axis of the mesh",
    )


def _wrong_kind(
    name: t.Ident, held: tuple[Kind, Span], wanted: str, known: list[str]
) -> Diagnostic:
    kinds = {"let": "a let", "axis": "a mesh axis", "dim": "a dim"}
    return error(
        "SH0206",
        f"`{name.text}` is {kinds[held[0]]}, not {wanted}",
        name.span,
        labels=[Label(held[1], "declared here")],
        help=_near(name.text, known) or "use a name of the right kind, or rename one",
    )


def _declared_twice(name: t.Ident, kind: Kind, held: Kind, place: Span) -> Diagnostic:
    first, again = place, name.span
    if first.file == again.file:
        first, again = sorted((first, again))
    return error(
        "SH0202",
        f"`{name.text}` is declared twice",
        again,
        label="declared again here",
        labels=[Label(first, "first declared here")],
        notes=["axes, dims and lets share one namespace"] if kind != held else [],
        help="rename one of them",
    )


def _axis_twice(product: t.Product, axis: str) -> Diagnostic:
    return error(
        "SH0204",
        f"axis `{axis}` stands twice in one product",
        product.span,
        notes=["a dim's name stands for its axes"],
        help="name each axis once",
    )
