"""The resolvers of `optimizer` and `group`: an optimizer of torch, and what it may be given."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from shardlang.grammar import tree as t
from shardlang.grammar.diagnostics import Diagnostic, Span, error, join_words, quote
from shardlang.grammar.formatter import format_node
from shardlang.grammar.patterns import nearest
from shardlang.ir.optimizers import (
    ASSUMED,
    ELEMENTWISE,
    SPARSE,
    ArgumentKind,
    arguments_of,
    classes,
    made,
    why_not,
)
from shardlang.spec.arguments import checked_arguments, tried
from shardlang.spec.draft import Draft
from shardlang.spec.types import Arguments, GroupDecl, LiteralValue, OptimizerDecl

_OF_ALL: dict[str, ArgumentKind] = {"clip": "positive"}
"""`clip` is the greatest norm of all gradients together."""

_OF_KERNELS = ("foreach", "fused")
"""How all updates of a step are computed together, which is no setting of some of them."""


def resolve_optimizer(node: t.Optimizer, draft: Draft) -> None:
    """Resolve `optimizer`."""
    draft.state("optimizer", "", node.span)
    name = node.name.text
    finding = _check_name(name, node.name.span)
    if finding is not None:
        draft.scope.report(finding)
        return
    known = {**arguments_of(name), **_OF_ALL}
    named = checked_arguments(name, node.arguments, known, "SH0221", draft.scope)
    if named is not None and _is_made(name, named, node, draft):
        draft.optimizer = OptimizerDecl(name, named, node.span)


def _check_name(name: str, span: Span) -> Diagnostic | None:
    """A finding where there is no such optimizer, or it does not work on parts."""
    meant = name if name in classes() else _plain(name)
    why = why_not(meant) if meant in classes() else None
    if name not in classes() and why is None:
        near = [meant] if meant in classes() else nearest(name, ELEMENTWISE)
        listed = f"write {join_words(quote(ELEMENTWISE))}"
        help = f"did you mean `{near[0]}`" if near else listed
        return error("SH0220", f"unknown optimizer `{name}`", span, help=help)
    if why is None:
        return None
    own = f"`torch.optim.{classes()[meant].__name__}(module.parameters())`"
    return error(
        "SH0245",
        f"`{name}` cannot update parameters in parts: {why}",
        span,
        help=f"write {join_words(quote(ELEMENTWISE))}"
        + (f"; or, in a loop of your own, {own}" if meant not in SPARSE else ""),
    )


def _plain(name: str) -> str:
    """A name as torch's classes have it here: of `AdamW` and `adam_w`, `adamw`."""
    return name.lower().replace("_", "")


def _is_made(name: str, named: Arguments, node: t.Optimizer | t.Group, draft: Draft) -> bool:
    """Whether torch makes an optimizer of that; if not, its reason becomes a finding."""

    def make(given: Mapping[str, LiteralValue]) -> object:
        own = {key: value for key, value in given.items() if key != "clip"}
        return made(name, [torch.zeros(2)], own)

    wrong = tried(make, named, node.arguments, node.span)
    if wrong is not None:
        said, span = wrong
        message = f"`{name}` cannot be made so: {said}"
        help = "change the argument"
        draft.scope.report(error("SH0221", message, span, help=help))
    return wrong is None


def resolve_group(node: t.Group, draft: Draft) -> None:
    """Note a group; what it may be given is known when the optimizer is."""
    for text in node.patterns:
        draft.state("group", format_node(text), text.span)
    patterns = [(draft.scope.pattern(text), text.span) for text in node.patterns]
    draft.groups.append((node, tuple((p, span) for p, span in patterns if p is not None)))


def _same_group(span: Span) -> Diagnostic:
    """The error of a group that is updated as all else is."""
    help = 'write what is different in it, as in `group "**.bias" (weight_decay = 0)`'
    return error("SH0221", "the group has no settings", span, help=help)


def resolve_groups(draft: Draft) -> tuple[GroupDecl, ...]:
    """The groups, their arguments checked against the optimizer's signature."""
    name = draft.optimizer.name if draft.optimizer is not None else ASSUMED.name
    known = {key: kind for key, kind in arguments_of(name).items() if key not in _OF_KERNELS}
    found: list[GroupDecl] = []
    for node, patterns in draft.groups:
        named = checked_arguments(name, node.arguments, known, "SH0221", draft.scope)
        if not node.arguments:
            draft.scope.report(_same_group(node.span))
            continue
        stated = dict(draft.optimizer.arguments) if draft.optimizer is not None else {}
        if named is None or not _is_made(
            name, tuple({**stated, **dict(named)}.items()), node, draft
        ):
            continue
        found.append(GroupDecl(patterns, named, node.span))
    return tuple(found)
