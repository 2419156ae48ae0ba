"""The resolver of `pipeline`: its axis, its stages, its schedule and its microbatches."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TypeVar

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import Label, error, join_words, quote
from shardlang.grammar.patterns import nearest
from shardlang.ir.pipeline.kinds import INTERLEAVED, STAGES_OF_RANK
from shardlang.spec.arguments import named_arguments
from shardlang.spec.draft import Draft, overridden
from shardlang.spec.gather import Gathered
from shardlang.spec.scope import Scope, kind_of
from shardlang.spec.types import AccumulateDecl, PipelineDecl, SplitDecl

_ItemT = TypeVar("_ItemT", bound="t.PipelineItem")


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
    split = _split(_last(node, t.Split, "split", draft), node, draft.scope)
    order = _last(node, t.Order, "schedule", draft)
    schedule, virtual = _schedule(order, draft.scope)
    count = _count(_last(node, t.Microbatches, "microbatches", draft), node, draft.scope)
    if split is None or schedule is None or virtual is None or count is None:
        return
    at = node.axis.span if order is None else order.span
    draft.microbatches = count
    draft.pipeline = PipelineDecl(node.axis.text, split, schedule, virtual, node.axis.span, at)


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


def _last(node: t.Pipeline, kind: type[_ItemT], word: str, draft: Draft) -> _ItemT | None:
    """The line of a kind that is in force."""
    found = [item for item in node.items if isinstance(item, kind)]
    for earlier, later in pairwise(found):
        draft.scope.report(overridden(word, earlier.span, later.span))
    return found[-1] if found else None


def _split(item: t.Split | None, node: t.Pipeline, scope: Scope) -> SplitDecl | None:
    if item is None:
        help = 'name the list of the model\'s layers, as in `split "model.layers"`'
        scope.report(error("SH0261", "the pipeline has no stages", node.axis.span, help=help))
        return None
    found = [(scope.pattern(text), text.span) for text in item.lists]
    lists = tuple((pattern, span) for pattern, span in found if pattern is not None)
    return SplitDecl(lists, item.span) if len(lists) == len(found) else None


def _count(item: t.Microbatches | None, node: t.Pipeline, scope: Scope) -> AccumulateDecl | None:
    if item is None:
        help = "state how many parts a batch is cut into, as in `microbatches 16`"
        scope.report(error("SH0261", "the pipeline has no microbatches", node.axis.span, help=help))
        return None
    count = scope.integer(item.count, "a number of microbatches", "SH0242", least=2)
    return None if count is None else AccumulateDecl(count, item.span)


def _schedule(item: t.Order | None, scope: Scope) -> tuple[str | None, int | None]:
    """The schedule and the stages of each device; None for what is wrong."""
    if item is None:
        return "1f1b", 1
    name = item.name.text
    if name not in STAGES_OF_RANK:
        near = nearest(name.lower(), STAGES_OF_RANK)
        listed = f"the schedules are {join_words(quote(STAGES_OF_RANK), 'and')}"
        help = f"did you mean `{near[0]}`" if near else listed
        scope.report(error("SH0260", f"unknown schedule `{name}`", item.name.span, help=help))
        return None, None
    return name, _virtual(item, scope)


def _virtual(item: t.Order, scope: Scope) -> int | None:
    """The stages of each device."""
    name = item.name.text
    _, named = named_arguments(item.arguments, scope)
    if len(named) < len(item.arguments):
        return None  # what is wrong with one of them is found
    if name != INTERLEAVED and named:
        message = f"`{name}` takes no arguments: each device has {_stages(STAGES_OF_RANK[name])}"
        help = f"remove them, or write `{INTERLEAVED}(virtual = 2)`"
        scope.report(error("SH0260", message, item.arguments[0].span, help=help))
        return None
    for argument, (key, value) in zip(item.arguments, named, strict=True):
        if key != "virtual":
            message, help = f"`{name}` has no argument `{key}`", f"write `{name}(virtual = 2)`"
            scope.report(error("SH0260", message, argument.span, help=help))
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            shown = kind_of(value) if isinstance(value, (bool, str, tuple)) else f"{value}"
            message = (
                f"`virtual`, the stages of each device, is an integer of at least 2, not {shown}"
            )
            help = "write 2 or more, or take the schedule `1f1b`"
            scope.report(error("SH0260", message, argument.value.span, help=help))
            return None
        return value
    return STAGES_OF_RANK[name]


def _stages(count: int) -> str:
    return "one stage" if count == 1 else "two stages"
