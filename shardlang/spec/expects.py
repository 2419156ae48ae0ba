"""The lines of an `expect` block."""

from __future__ import annotations

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import error
from shardlang.patterns import Pattern
from shardlang.spec.draft import Draft
from shardlang.spec.layouts import resolve_layout
from shardlang.spec.scope import Scope, kind_of
from shardlang.spec.types import ExpectCount, ExpectForbid, ExpectLayout, SelectExpr


def resolve_expect(node: t.Expect, draft: Draft) -> None:
    """Resolve every line of the block."""
    for item in node.items:
        if isinstance(item, t.Forbid):
            _forbid(item, draft)
        elif isinstance(item, t.Count):
            _count(item, draft)
        else:
            _layout(item, draft)


def _forbid(node: t.Forbid, draft: Draft) -> None:
    select = _select(node.select, draft.scope)
    if select is not None:
        draft.expects.append(ExpectForbid(select, node.span))


def _count(node: t.Count, draft: Draft) -> None:
    select = _select(node.select, draft.scope)
    bound = _bound(node, draft.scope)
    if select is not None and bound is not None:
        expect = ExpectCount(node.measure, select, node.comparison, bound, node.span)
        draft.expects.append(expect)


def _layout(node: t.LayoutIs, draft: Draft) -> None:
    pattern = draft.scope.pattern(node.name)
    layout = resolve_layout(node.layout, draft.scope, f"`{node.name.text}`")
    if pattern is not None and layout is not None:
        draft.expects.append(ExpectLayout(pattern, layout, node.span))


def _select(node: t.Select, scope: Scope) -> SelectExpr | None:
    axes = scope.axes_of(node.axes) if node.axes is not None else None
    pattern: Pattern | None = None
    if node.pattern is not None:
        pattern = scope.pattern(node.pattern)
        if pattern is None:
            return None
    if node.axes is not None and axes is None:
        return None
    return SelectExpr(node.op, node.phase, axes, pattern)


def _bound(node: t.Count, scope: Scope) -> int | None:
    """A count or a number of bytes."""
    if isinstance(node.bound, t.Size) and node.measure == "count":
        message = "a count is compared with a size in bytes"
        help = "write `bytes` first, or a plain number"
        scope.report(error("SH0227", message, node.bound.span, help=help))
        return None
    value = scope.scalar(node.bound)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        message = f"the bound is an integer or a size, not {kind_of(value)}"
        scope.report(error("SH0227", message, node.bound.span, help="write a whole number"))
        return None
    if value < 0:
        message = f"the bound is at least 0, not {value}"
        scope.report(error("SH0227", message, node.bound.span, help="write 0 or more"))
        return None
    return value
