"""The resolver of `learning_rate`: phases one after the other, or a scheduler of torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import Diagnostic, error, join_words, quote
from shardlang.grammar.patterns import nearest
from shardlang.ir import schedules
from shardlang.ir.optimizers import ASSUMED, ArgumentKind, UpdateRule, made
from shardlang.ir.schedules import CANNOT, PHASES, arguments_of, schedulers
from shardlang.spec.arguments import checked_arguments, tried
from shardlang.spec.draft import Draft
from shardlang.spec.types import LearningRateDecl, LiteralValue, OptimizerDecl, PhaseDecl

_CODE = "SH0246"


def note_learning_rate(node: t.LearningRate, draft: Draft) -> None:
    """Note the schedule; what it may be given is known when the optimizer is."""
    draft.state("learning_rate", "", node.span)
    draft.schedule = node


def resolve_learning_rate(draft: Draft) -> LearningRateDecl | None:
    """The schedule in force, checked against the optimizer whose rate it sets."""
    node = draft.schedule
    if node is None:
        return None
    phases = [_phase(phase, i, node, draft) for i, phase in enumerate(node.phases)]
    if any(phase is None for phase in phases):
        return None
    return LearningRateDecl(tuple(phase for phase in phases if phase is not None), node.span)


def _phase(node: t.Phase, index: int, whole: t.LearningRate, draft: Draft) -> PhaseDecl | None:
    name, alone, scope = node.name.text, len(whole.phases) == 1, draft.scope
    finding = _misplaced(node, index, alone)
    if finding is not None:
        scope.report(finding)
        return None
    known: dict[str, ArgumentKind] = dict.fromkeys(PHASES.get(name, ()), "number")
    known = known or arguments_of(name)
    named = checked_arguments(name, node.arguments, known, _CODE, scope)
    if named is None:
        return None
    phase = PhaseDecl(name, named, node.span)
    wrong = _wrong(node, phase, draft.optimizer)
    if wrong is not None:
        scope.report(wrong)
    return phase if wrong is None else None


def _misplaced(node: t.Phase, index: int, alone: bool) -> Diagnostic | None:
    name, span = node.name.text, node.name.span
    names = [*PHASES, *schedulers()]
    if name in CANNOT:
        message = f"a text cannot state `{name}`: {CANNOT[name]}"
        help = f"write {join_words(quote(PHASES))}, or make it in a loop of your own"
        return error(_CODE, message, span, help=help)
    if name not in names:
        near = nearest(name, names)
        help = f"did you mean `{near[0]}`" if near else f"write {join_words(quote(PHASES))}"
        return error(_CODE, f"unknown schedule `{name}`", span, help=help)
    if name == "warmup" and index:
        message, help = "`warmup` begins at 0, so it comes first", "put it in front"
        return error(_CODE, message, span, help=help)
    if name not in PHASES and not alone:
        message = f"`{name}` is a scheduler of torch, which stands alone"
        help = f"write it by {join_words(quote(PHASES))}, or leave the others out"
        return error(_CODE, message, span, help=help)
    return None


def _wrong(node: t.Phase, phase: PhaseDecl, stated: OptimizerDecl | None) -> Diagnostic | None:
    """A finding where the numbers make no schedule."""
    rule = ASSUMED if stated is None else UpdateRule(stated.name, stated.kwargs)
    if phase.name in PHASES:
        return _wrong_steps(phase, rule)

    def make(named: Mapping[str, LiteralValue]) -> object:
        optimizer = made(rule.name, [torch.zeros(2)], rule.settings)
        schedule = schedules.made(phase.name, optimizer, named)
        optimizer.step()
        schedule.step()
        return schedule

    found = tried(make, phase.arguments, node.arguments, phase.span)
    if found is None:
        return None
    said, span = found
    message = f"`{phase.name}` cannot be made so: {said}"
    return error(_CODE, message, span, help="change the argument")


def _wrong_steps(phase: PhaseDecl, rule: UpdateRule) -> Diagnostic | None:
    steps = dict(phase.arguments).get("steps")
    if not isinstance(steps, int) or steps < 1:
        message = f"`{phase.name}` takes a whole number of steps, at least 1"
        help = f"write `{phase.name}(steps = 200)`"
        return error(_CODE, message, phase.span, help=help)
    if rule.settings.get("lr") == 0:
        message, help = "a rate of 0 stays 0", "state a `lr` above 0 in `optimizer`"
        return error(_CODE, message, phase.span, help=help)
    return None
