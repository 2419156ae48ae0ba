"""Layouts: names to axes, and what a layout may not say whatever the tensor is."""

from __future__ import annotations

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import Diagnostic, Label, Span, error
from shardlang.spec.scope import Scope
from shardlang.spec.types import Axes, LayoutEntry, LayoutExpr, Open, Rest, Whole


def resolve_layout(
    node: t.Layout, scope: Scope, subject: str, partial: bool = True
) -> LayoutExpr | None:
    """The layout with its names expanded; None, with findings, where it says nothing sound.

    Args:
        subject: what is laid out, for messages.
        partial: whether the tensor may be a partial sum.
    """
    entries = [_entry(entry, scope) for entry in node.entries]
    summed = _partial(node, scope, subject, partial)
    if summed is None or any(entry is None for entry in entries):
        return None
    expr = LayoutExpr(tuple(entry for entry in entries if entry is not None), summed, node.span)
    faults = [*_repeated_axes(expr, scope, subject), *_repeated_rest(expr)]
    faults += _summed_axes(expr, scope, node)
    scope.findings += faults
    return None if faults else expr


def _entry(node: t.Entry, scope: Scope) -> LayoutEntry | None:
    if isinstance(node, t.WholeEntry):
        return Whole(node.span)
    if isinstance(node, t.OpenEntry):
        return Open(node.span)
    if isinstance(node, t.RestEntry):
        return Rest(node.span)
    axes = scope.axes_of(node.product)
    blocks = [scope.integer(block, "a block", "SH0210") for block in node.blocks]
    if axes is None or any(block is None for block in blocks):
        return None
    if not axes:
        return Whole(node.span)
    return Axes(axes, tuple(block for block in blocks if block is not None) or None, node.span)


def _partial(node: t.Layout, scope: Scope, subject: str, allowed: bool) -> tuple[str, ...] | None:
    if node.partial and not allowed:
        scope.report(
            error(
                "SH0232",
                f"{subject} cannot be a partial sum",
                node.partial[0].span,
                notes=["only values inside the model are partial sums"],
                help="remove the `+`",
            )
        )
        return None
    found = [scope.axes_of_name(name) for name in node.partial]
    if any(axes is None for axes in found):
        return None
    return tuple(axis for axes in found for axis in axes or ())


def _repeated_axes(expr: LayoutExpr, scope: Scope, subject: str) -> list[Diagnostic]:
    first: dict[str, Span] = {}
    faults: list[Diagnostic] = []
    for entry in expr.entries:
        for axis in entry.axes if isinstance(entry, Axes) else ():
            if (same := scope.parts.shared(axis, first)) is not None:
                faults.append(_shards_two(axis, subject, first[same], entry.span))
            first.setdefault(axis, entry.span)
    return faults


def _shards_two(axis: str, subject: str, first: Span, again: Span) -> Diagnostic:
    return error(
        "SH0203",
        f"axis `{axis}` shards two dims of {subject}",
        again,
        label="used again here",
        labels=[Label(first, "first used here")],
        notes=["an axis may shard at most one dim of a tensor"],
        help="drop one use, or declare a second axis in `mesh`",
    )


def _repeated_rest(expr: LayoutExpr) -> list[Diagnostic]:
    places = [entry.span for entry in expr.entries if isinstance(entry, Rest)]
    return [
        error(
            "SH0209",
            "`...` stands twice in one layout",
            again,
            labels=[Label(places[0], "first used here")],
            help="keep one `...` and write the other dims out",
        )
        for again in places[1:]
    ]


def _summed_axes(expr: LayoutExpr, scope: Scope, node: t.Layout) -> list[Diagnostic]:
    sharding = [axis for entry in expr.entries if isinstance(entry, Axes) for axis in entry.axes]
    faults: list[Diagnostic] = []
    for index, axis in enumerate(expr.partial):
        sharded = scope.parts.shared(axis, sharding) is not None
        if sharded or scope.parts.shared(axis, expr.partial[:index]) is not None:
            span = node.partial[min(index, len(node.partial) - 1)].span
            message = f"axis `{axis}` is summed over twice"
            if sharded:
                message = f"axis `{axis}` both shards a dim and is summed over"
            faults.append(error("SH0208", message, span, help=f"drop one use of `{axis}`"))
    return faults
