"""The resolver of `recompute`: modules add up, and the last of the other two forms is in force."""

from __future__ import annotations

from dataclasses import replace

from shardlang.grammar import tree as t
from shardlang.grammar.formatter import format_node
from shardlang.ir.step_options import Recompute
from shardlang.spec.draft import Draft
from shardlang.spec.types import RecomputeDecl


def resolve_recompute(node: t.Recompute, draft: Draft) -> None:
    """Note the modules, or how much is computed again elsewhere."""
    if node.patterns:
        for written in node.patterns:
            _modules(written, draft)
        return
    draft.state("recompute", "", node.span)
    budget = None
    if node.budget is not None:
        budget = draft.scope.integer(node.budget, "the budget of `recompute`", "SH0236")
    chosen = Recompute(selective=node.budget is None, budget_bytes=budget)
    draft.step = replace(draft.step, recompute=chosen)


def _modules(written: t.Text, draft: Draft) -> None:
    draft.state("recompute", format_node(written), written.span)
    pattern = draft.scope.pattern(written)
    if pattern is not None:
        draft.recomputes.append(RecomputeDecl(pattern, written.span))
