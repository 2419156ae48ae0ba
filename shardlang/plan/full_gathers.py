"""Warnings about changes of layout during which devices hold more than before and after."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from shardlang.compiler.at_model import places
from shardlang.compiler.driver import Compiled
from shardlang.cost.held import local_bytes
from shardlang.grammar.diagnostics import Diagnostic, error
from shardlang.ir.node import info, tensor_of
from shardlang.plan import CollectiveRow, plan_of
from shardlang.plan.expectations import FULL_GATHER, selects
from shardlang.plan.fold import fold, join_sentences, skeleton_of_sentence
from shardlang.plan.moments import Phase
from shardlang.plan.text import bytes_text
from shardlang.spec.types import ExpectForbid, Spec


def full_gathers(compiled: Compiled) -> list[Diagnostic]:
    """A warning for every full gather of the forward; those alike in all layers are one.

    Where the spec forbids them, comparing it with the plan reports them instead.
    """
    nodes = {n.name: n for n in compiled.program.graph.nodes if info(n).full_gather is not None}
    if not nodes:
        return []
    rows = [row for row in plan_of(compiled).collectives if row.full_gather]
    forward = (row for row in rows if row.phase is Phase.FORWARD)
    seen = [row for row in forward if not _forbidden(row, compiled)]
    warnings = [_warning(row, nodes[row.node], compiled.spec) for row in seen]
    return [_joined(group) for group in fold(warnings, _alike)]


def _forbidden(row: CollectiveRow, compiled: Compiled) -> bool:
    forbids = (e.select for e in compiled.spec.expects if isinstance(e, ExpectForbid))
    return any(s.op == FULL_GATHER and selects(s, row, compiled.program.mesh) for s in forbids)


def _warning(row: CollectiveRow, node: fx.Node, spec: Spec) -> Diagnostic:
    gather = info(node).full_gather
    assert gather is not None
    place, labels, notes = places(info(node).source, spec.model.span)
    layouts = (gather.start, gather.widest, gather.end)
    held = [bytes_text(local_bytes(layout, tensor_of(node).dtype)) for layout in layouts]
    sizes = [f"`{layout}` ({size})" for layout, size in zip(layouts, held, strict=True)]
    found = error(
        "SH0406",
        row.reason,
        place,
        labels=labels,
        notes=[
            f"on a device it is {sizes[0]}, then {sizes[1]}, then {sizes[2]}",
            *([f"in module `{row.module}`"] if row.module else []),
            *notes,
        ],
        help="state the tensor as its reader needs it, or let both be split alike;"
        " `forbid full_gather` makes this an error",
    )
    return replace(found, severity="warning")


def _alike(warning: Diagnostic) -> tuple[object, ...]:
    texts = (warning.message, *warning.notes)
    return warning.span, tuple(skeleton_of_sentence(text) for text in texts)


def _joined(group: list[Diagnostic]) -> Diagnostic:
    message = join_sentences([warning.message for warning in group])
    notes = zip(*(warning.notes for warning in group), strict=True)
    return replace(group[0], message=message, notes=tuple(map(join_sentences, notes)))
