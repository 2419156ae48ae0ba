"""The lines of an `expect` block."""

from __future__ import annotations

from functools import singledispatch

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import error
from shardlang.grammar.patterns import Pattern
from shardlang.spec.draft import Draft
from shardlang.spec.layouts import resolve_layout
from shardlang.spec.scope import Scope, kind_of
from shardlang.spec.types import (
    ExpectCount,
    ExpectForbid,
    ExpectLayout,
    ExpectLocal,
    ExpectLocalBytes,
    SelectExpr,
    TimesBound,
)


def resolve_expect(node: t.Expect, draft: Draft) -> None:
    """Resolve every line of the block."""
    for item in node.items:
        _resolve(item, draft)


@singledispatch
def _resolve(item: t.ExpectItem, draft: Draft) -> None:
    """Resolve one line."""
    raise TypeError(f"no resolver for {type(item).__name__}")


@_resolve.register
def _forbid(node: t.Forbid, draft: Draft) -> None:
    select = _select(node.select, draft.scope)
    if select is not None:
        draft.expects.append(ExpectForbid(select, node.span))


@_resolve.register
def _count(node: t.Count, draft: Draft) -> None:
    select = _select(node.select, draft.scope)
    bound = _limit(node.bound, draft.scope, in_bytes=node.measure == "bytes")
    if select is not None and bound is not None:
        expect = ExpectCount(node.measure, select, node.comparison, bound, node.span)
        draft.expects.append(expect)


@_resolve.register
def _layout(node: t.LayoutIs, draft: Draft) -> None:
    pattern = draft.scope.pattern(node.name)
    layout = resolve_layout(node.layout, draft.scope, f"`{node.name.text}`")
    if pattern is not None and layout is not None:
        draft.expects.append(ExpectLayout(pattern, layout, node.span))


@_resolve.register
def _local(node: t.LocalIs, draft: Draft) -> None:
    pattern = draft.scope.pattern(node.name)
    written = {i: s for i, s in enumerate(node.sizes) if not isinstance(s, t.OpenEntry)}
    found = {i: draft.scope.integer(s, "a size", "SH0226") for i, s in written.items()}
    if pattern is not None and None not in found.values():
        sizes = tuple(found.get(i) for i in range(len(node.sizes)))
        draft.expects.append(ExpectLocal(pattern, sizes, node.span))


@_resolve.register
def _local_bytes(node: t.LocalBytes, draft: Draft) -> None:
    pattern = draft.scope.pattern(node.name)
    bound = _bound(node.bound, draft.scope, in_bytes=True)
    if pattern is not None and bound is not None:
        draft.expects.append(ExpectLocalBytes(pattern, node.comparison, bound, node.span))


def _select(node: t.Select, scope: Scope) -> SelectExpr | None:
    axes = scope.axes_of(node.axes, stages=True) if node.axes is not None else None
    pattern: Pattern | None = None
    if node.pattern is not None:
        pattern = scope.pattern(node.pattern)
        if pattern is None:
            return None
    if node.axes is not None and axes is None:
        return None
    return SelectExpr(node.op, node.phase, axes, pattern)


def _limit(
    written: t.Scalar | t.TimesBound, scope: Scope, *, in_bytes: bool
) -> int | TimesBound | None:
    """A count, a number of bytes, or a multiple of what any program must send."""
    if not isinstance(written, t.TimesBound):
        return _bound(written, scope, in_bytes=in_bytes)
    if not in_bytes:
        message = "a count is compared with the bytes that any program must send"
        help = "write `bytes` first, or a plain number"
        scope.report(error("SH0227", message, written.span, help=help))
        return None
    if "bound" in scope.lets:
        message = "`bound` is what any program must send, and a `let` has the same name"
        scope.report(error("SH0227", message, written.span, help="give the `let` another name"))
        return None
    return _times(written, scope)


def _times(written: t.TimesBound, scope: Scope) -> TimesBound | None:
    factor = 1 if written.factor is None else scope.scalar(written.factor)
    if factor is None:
        return None
    if isinstance(factor, bool | str) or isinstance(written.factor, t.Size):
        message = f"the factor of `bound` is a number, not {kind_of(factor)}"
        scope.report(error("SH0227", message, written.span, help="write a number such as 1.1"))
        return None
    if factor < 0:
        message = f"the factor of `bound` is at least 0, not {factor}"
        scope.report(error("SH0227", message, written.span, help="write a number such as 1.1"))
        return None
    return TimesBound(factor)


def _bound(written: t.Scalar, scope: Scope, *, in_bytes: bool) -> int | None:
    """A count or a number of bytes."""
    if isinstance(written, t.Size) and not in_bytes:
        message = "a count is compared with a size in bytes"
        help = "write `bytes` first, or a plain number"
        scope.report(error("SH0227", message, written.span, help=help))
        return None
    value = scope.scalar(written)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        message = f"the bound is an integer or a size, not {kind_of(value)}"
        scope.report(error("SH0227", message, written.span, help="write a whole number"))
        return None
    if value < 0:
        message = f"the bound is at least 0, not {value}"
        scope.report(error("SH0227", message, written.span, help="write 0 or more"))
        return None
    return value
