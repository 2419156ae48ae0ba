"""The resolver of `pipeline`: its axis, its stages, its schedule and its microbatches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import Label, Span, error, join_words, quote
from shardlang.grammar.patterns import Pattern, nearest
from shardlang.spec.draft import Draft
from shardlang.spec.gather import Gathered
from shardlang.spec.orders import resolve_order
from shardlang.spec.scope import Scope
from shardlang.spec.types import AccumulateDecl, PipelineDecl, SplitDecl

_ItemT = TypeVar("_ItemT", bound=t.Item)


def declare_stages(gathered: Gathered, roles: Mapping[str, t.AxisRole], scope: Scope) -> None:
    """Enter the axis of the last pipeline, over which nothing else may lie."""
    stated = [f.statement for f in gathered.facts if isinstance(f.statement, t.Pipeline)]
    if not stated or not scope.axes:
        return
    axis = stated[-1].axis
    if axis.text not in scope.axes:
        near = nearest(axis.text, scope.near(scope.axes))
        listed = f"the axes are {join_words(quote(scope.axes), 'and')}"
        help = f"did you mean `{near[0]}`" if near else listed
        scope.report(error("SH0205", f"unknown axis `{axis.text}`", axis.span, help=help))
        return
    scope.stages = axis
    scope.used.add(axis.text)
    if roles.get(axis.text) == "data":
        message = f"axis `{axis.text}` is declared `as data`, and its devices hold stages"
        place = Label(scope.places[axis.text][1], "declared here")
        scope.report(error("SH0261", message, axis.span, labels=[place], help="remove `as data`"))


def resolve_pipeline(node: t.Pipeline, draft: Draft) -> None:
    """Note the pipeline; one that lacks something is reported and not noted."""
    draft.state("pipeline", "", node.span)
    split = _split(_line(node, (t.Split, t.SplitAuto, t.Stages), "split", draft), node, draft.scope)
    count = _count(_line(node, (t.Microbatches,), "microbatches", draft), node, draft.scope)
    order = _line(node, (t.Order,), "schedule", draft)
    chosen = resolve_order(order, node.axis, count, draft)
    if split is None or chosen is None or count is None:
        return
    draft.microbatches = count
    draft.pipeline = PipelineDecl(
        node.axis.text,
        split,
        chosen.schedule,
        chosen.virtual,
        chosen.actions,
        node.axis.span,
        node.axis.span if order is None else order.span,
    )


def check_accumulate(draft: Draft) -> None:
    """Refuse microbatches that are stated twice."""
    if draft.accumulate is not None and draft.microbatches is not None:
        draft.scope.report(
            error(
                "SH0261",
                "the microbatches of a pipeline are stated by `microbatches`",
                draft.accumulate.span,
                labels=[Label(draft.microbatches.span, "stated here")],
                help="remove `accumulate`",
            )
        )


def _line(
    node: t.Pipeline, kinds: tuple[type[_ItemT], ...], word: str, draft: Draft
) -> _ItemT | None:
    """The line of some kinds, of which a pipeline has one."""
    found = [item for item in node.items if isinstance(item, kinds)]
    for earlier, later in pairwise(found):
        draft.scope.report(
            error(
                "SH0261",
                f"the pipeline states `{word}` twice",
                later.span,
                labels=[Label(earlier.span, "stated first here")],
                help="remove one of them",
            )
        )
    return found[-1] if found else None


def _split(item: t.Item | None, node: t.Pipeline, scope: Scope) -> SplitDecl | None:
    if isinstance(item, t.Split):
        lists = _patterns(item.lists, scope)
        return None if lists is None else SplitDecl(lists, span=item.span)
    if isinstance(item, t.SplitAuto):
        return SplitDecl(auto=True, span=item.span)
    if isinstance(item, t.Stages) and item.items:
        stages = [_patterns(stage.modules, scope) for stage in item.items]
        found = tuple(stage for stage in stages if stage is not None)
        return SplitDecl(stages=found, span=item.span) if len(found) == len(stages) else None
    help = (
        'name the list of the model\'s layers, as in `split "model.layers"`, or write `split auto`'
    )
    scope.report(error("SH0261", "the pipeline has no stages", node.axis.span, help=help))
    return None


def _patterns(texts: Sequence[t.Text], scope: Scope) -> tuple[tuple[Pattern, Span], ...] | None:
    found = [(scope.pattern(text), text.span) for text in texts]
    named = tuple((pattern, span) for pattern, span in found if pattern is not None)
    return named if len(named) == len(found) else None


def _count(item: t.Microbatches | None, node: t.Pipeline, scope: Scope) -> AccumulateDecl | None:
    if item is None:
        help = "state how many parts a batch is cut into, as in `microbatches 16`"
        scope.report(error("SH0261", "the pipeline has no microbatches", node.axis.span, help=help))
        return None
    count = scope.integer(item.count, "a number of microbatches", "SH0242", least=2)
    return None if count is None else AccumulateDecl(count, item.span)
