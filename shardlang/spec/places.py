"""Where the statement stands that a later stage speaks of."""

from __future__ import annotations

from shardlang.grammar.diagnostics import Span
from shardlang.spec.types import PrecisionDecl, Spec


def place_of(statement: str, spec: Spec | None) -> Span | None:
    """The place of a statement by its first word; None where the spec does not state it."""
    if spec is None or not statement:
        return None
    stated = {
        "model": spec.model,
        "data": spec.data,
        "evaluate": spec.evaluate,
        "optimizer": spec.optimizer,
        "group": next(iter(spec.groups), None),
        "learning_rate": spec.learning_rate,
        "checkpoint": spec.checkpoint,
        "loss": spec.loss,
    }
    if statement == "precision":
        return _first_line(spec.precision)
    found = stated[statement]
    return None if found is None else found.span


def _first_line(stated: PrecisionDecl) -> Span | None:
    """A line of `precision`, which has no place of its own."""
    lines = (stated.compute, stated.master, stated.reduce, stated.loss_scale)
    return next((line.span for line in lines if line is not None), None)
