"""One resolver per statement that lays out a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import Diagnostic, Label, error, join_words, quote
from shardlang.grammar.formatter import format_node
from shardlang.grammar.patterns import Pattern, literal_pattern, nearest
from shardlang.spec.cluster import resolve_cluster
from shardlang.spec.data import resolve_data
from shardlang.spec.draft import Draft
from shardlang.spec.expects import resolve_expect
from shardlang.spec.layouts import resolve_layout
from shardlang.spec.learning_rates import note_learning_rate
from shardlang.spec.models import absolute, resolve_model
from shardlang.spec.optimizers import resolve_group, resolve_optimizer
from shardlang.spec.pipeline import resolve_pipeline
from shardlang.spec.precision import resolve_precision
from shardlang.spec.recompute import resolve_recompute
from shardlang.spec.scope import Scope
from shardlang.spec.types import (
    AccumulateDecl,
    CheckpointDecl,
    EvaluateDecl,
    InputDecl,
    LayoutDecl,
    LayoutExpr,
    LossDecl,
    StoreDecl,
    ValueDecl,
)

INTEGERS = ("i64", "i32", "i16", "i8", "u8")
DTYPES = (*INTEGERS, "f64", "f32", "f16", "bf16", "bool")
"""The element types that an input may have."""


@singledispatch
def resolve_statement(node: t.Statement, draft: Draft) -> None:
    """Resolve a statement into the draft; what declares names is done before."""


@resolve_statement.register
def _(node: t.Model, draft: Draft) -> None:
    resolve_model(node, draft)


@resolve_statement.register
def _(node: t.Optimizer, draft: Draft) -> None:
    resolve_optimizer(node, draft)


@resolve_statement.register
def _(node: t.Data, draft: Draft) -> None:
    resolve_data(node, draft)


@resolve_statement.register
def _(node: t.Group, draft: Draft) -> None:
    resolve_group(node, draft)


@resolve_statement.register
def _(node: t.LearningRate, draft: Draft) -> None:
    note_learning_rate(node, draft)


@resolve_statement.register
def _(node: t.Evaluate, draft: Draft) -> None:
    draft.state("evaluate", "", node.span)
    every = draft.scope.integer(node.every, "a number of steps", "SH0247")
    batches = draft.scope.integer(node.batches, "a number of batches", "SH0247")
    source = None if node.source is None else absolute(draft.folder, node.source.text)
    if every is not None and batches is not None:
        draft.evaluate = EvaluateDecl(every, batches, source, node.span)


@resolve_statement.register
def _(node: t.Random, draft: Draft) -> None:
    draft.state("random", "", node.span)
    draft.random = node.mode


@resolve_statement.register
def _(node: t.Recompute, draft: Draft) -> None:
    resolve_recompute(node, draft)


@resolve_statement.register
def _(node: t.Accumulate, draft: Draft) -> None:
    count = draft.scope.integer(node.count, "a number of microbatches", "SH0242")
    draft.state("accumulate", "", node.span)
    if count is not None:
        draft.accumulate = AccumulateDecl(count, node.span)


@resolve_statement.register
def _(node: t.Pipeline, draft: Draft) -> None:
    resolve_pipeline(node, draft)


@resolve_statement.register
def _(node: t.Checkpoint, draft: Draft) -> None:
    draft.state("checkpoint", "", node.span)
    every = draft.scope.integer(node.every, "a number of steps", "SH0248")
    keep, keep_every = (
        None if count is None else draft.scope.integer(count, what, "SH0248")
        for count, what in ((node.keep, "what is kept"), (node.keep_every, "a number of steps"))
    )
    if every is not None:
        on_nan = node.on_nan or "stop"
        draft.checkpoint = CheckpointDecl(every, keep, keep_every, on_nan, node.span)


@resolve_statement.register
def _(node: t.Precision, draft: Draft) -> None:
    resolve_precision(node, draft)


@resolve_statement.register
def _(node: t.Schedule, draft: Draft) -> None:
    for item in node.items:
        size = draft.scope.integer(item.size, "what `prefetch` may hold", "SH0238", least=0)
        if size is not None:
            draft.state("prefetch", "", item.span)
            draft.step = replace(draft.step, prefetch=size)


@resolve_statement.register
def _(node: t.Cluster, draft: Draft) -> None:
    resolve_cluster(node, draft)


@resolve_statement.register
def _(node: t.Expect, draft: Draft) -> None:
    resolve_expect(node, draft)


@resolve_statement.register
def _(node: t.Mesh, draft: Draft) -> None:
    draft.state("mesh", "", node.span)


@resolve_statement.register
def _(node: t.Input, draft: Draft) -> None:
    scope = draft.scope
    sizes = [scope.integer(size, "a dim of an input", "SH0226") for size in node.shape]
    dtype = _dtype(node, scope)
    below = _below(node, scope)
    subject = f"input {join_words(quote(ref.text for ref in node.refs), 'and')}"
    layout = resolve_layout(node.layout, scope, subject, partial=False)
    patterns = _patterns(node.refs, scope)
    if layout is None or dtype is None or any(size is None for size in sizes):
        return
    shape = tuple(size for size in sizes if size is not None)
    if not _rank_fits(layout, shape, node, scope):
        return
    for ref, pattern in patterns:
        draft.state("input", format_node(ref), ref.span)
        draft.inputs.pop(pattern.text, None)
        decl = InputDecl(pattern, dtype, shape, below, layout, ref.span)
        draft.inputs[pattern.text] = decl


def _dtype(node: t.Input, scope: Scope) -> str | None:
    if node.dtype.text in DTYPES:
        return node.dtype.text
    near = nearest(node.dtype.text, DTYPES)
    listed = f"the element types are {join_words(quote(DTYPES), 'and')}"
    help = f"did you mean `{near[0]}`" if near else listed
    message = f"unknown element type `{node.dtype.text}`"
    scope.report(error("SH0213", message, node.dtype.span, help=help))
    return None


def _below(node: t.Input, scope: Scope) -> int | None:
    if node.below is None:
        return None
    if node.dtype.text in DTYPES and node.dtype.text not in INTEGERS:
        message = f"`below` bounds integers, and `{node.dtype.text}` is none"
        scope.report(error("SH0222", message, node.below.span, help="remove `below`"))
        return None
    return scope.integer(node.below, "the bound of `below`", "SH0222")


def _rank_fits(layout: LayoutExpr, shape: tuple[int, ...], node: t.Input, scope: Scope) -> bool:
    written = len(layout.entries) - (layout.rank is None)
    if written == len(shape) or (layout.rank is None and written <= len(shape)):
        return True
    message = f"the layout has {written} entries, the shape {len(shape)} dims"
    label = Label(node.dtype.span, "the shape is stated here")
    help = "write one entry per dim, or `...` for the remaining ones"
    scope.report(error("SH0228", message, node.layout.span, labels=[label], help=help))
    return False


def _patterns(refs: Sequence[t.Ref], scope: Scope) -> list[tuple[t.Ref, Pattern]]:
    found: list[tuple[t.Ref, Pattern]] = []
    for ref in refs:
        if isinstance(ref, t.Ident):
            found.append((ref, literal_pattern(ref.text)))
        elif (pattern := scope.pattern(ref)) is not None:
            found.append((ref, pattern))
    return found


def _stated(node: t.Param | t.Buffer, draft: Draft) -> LayoutDecl | None:
    kind = "param" if isinstance(node, t.Param) else "buffer"
    pattern = draft.scope.pattern(node.pattern)
    layout = resolve_layout(node.layout, draft.scope, f"`{node.pattern.text}`", partial=False)
    draft.state(kind, format_node(node.pattern), node.pattern.span)
    if pattern is None or layout is None:
        return None
    return LayoutDecl(pattern, layout, node.pattern.span)


@resolve_statement.register
def _(node: t.Param, draft: Draft) -> None:
    stated = _stated(node, draft)
    if stated is not None:
        draft.params.append(stated)


@resolve_statement.register
def _(node: t.Buffer, draft: Draft) -> None:
    stated = _stated(node, draft)
    if stated is not None:
        draft.buffers.append(stated)


@resolve_statement.register
def _(node: t.Output, draft: Draft) -> None:
    subject = f"output {join_words(quote(ref.text for ref in node.refs), 'and')}"
    layout = resolve_layout(node.layout, draft.scope, subject, partial=False)
    for ref, pattern in _patterns(node.refs, draft.scope):
        draft.state("output", format_node(ref), ref.span)
        if layout is not None:
            draft.outputs.append(LayoutDecl(pattern, layout, ref.span))


@resolve_statement.register
def _(node: t.Loss, draft: Draft) -> None:
    draft.state("loss", "", node.span)
    for ref, pattern in _patterns([node.ref], draft.scope):
        draft.loss = LossDecl(pattern, ref.span)


@resolve_statement.register
def _(node: t.Store, draft: Draft) -> None:
    pattern = draft.scope.pattern(node.pattern)
    axes = draft.scope.axes_of(node.axes)
    draft.state("store", format_node(node.pattern), node.pattern.span)
    if node.regather and node.what:
        draft.scope.report(_kept_already(node))
    if pattern is not None and axes is not None:
        span = node.pattern.span
        draft.stores.append(StoreDecl(pattern, axes, node.regather, node.what or "value", span))


def _kept_already(node: t.Store) -> Diagnostic:
    return error(
        "SH0229",
        f"`store {node.what}` leaves nothing to gather again: the parameter is kept as it is used",
        node.span,
        help=f"remove `regather`, or split the parameter too by removing `{node.what}`",
    )


@resolve_statement.register
def _(node: t.ValueStatement, draft: Draft) -> None:
    pattern = draft.scope.pattern(node.pattern)
    layout = resolve_layout(node.layout, draft.scope, f"`{node.pattern.text}`")
    selector = node.selector or t.Selector("out", (), span=node.pattern.span)
    words = format_node(node.pattern) + format_node(selector)
    draft.state("value", words, node.pattern.span)
    if pattern is not None and layout is not None:
        span = node.pattern.span.to(selector.span)
        draft.values.append(ValueDecl(pattern, selector.side, selector.path, layout, span))
