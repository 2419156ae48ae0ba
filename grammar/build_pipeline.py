"""Lark's parse tree to the nodes of `pipeline { ... }`: one function per rule."""

from __future__ import annotations

from collections.abc import Callable

from shardlang.grammar import build_leaves as leaf
from shardlang.grammar import pipeline as t
from shardlang.grammar.rule import Rule


def pipeline(rule: Rule) -> t.Pipeline:
    """`pipeline axis { ... }`."""
    items = tuple(leaf.either(item, _ITEMS) for item in rule.rules(1))
    return t.Pipeline(leaf.ident(rule, 0), items, span=rule.span)


def _split(rule: Rule) -> t.Split:
    return t.Split(leaf.texts(rule.rule(0)), span=rule.span)


def _split_auto(rule: Rule) -> t.SplitAuto:
    return t.SplitAuto(span=rule.span)


def _stages(rule: Rule) -> t.Stages:
    return t.Stages(tuple(map(_stage, rule.rules())), span=rule.span)


def _stage(rule: Rule) -> t.Stage:
    return t.Stage(leaf.texts(rule.rule(0)), span=rule.span)


def _order(rule: Rule) -> t.Order:
    return t.Order(leaf.ref(rule), leaf.arguments(rule.maybe_rule(1)), span=rule.span)


def _microbatches(rule: Rule) -> t.Microbatches:
    return t.Microbatches(leaf.scalar(rule.rule(0)), span=rule.span)


_ITEMS: dict[str, Callable[[Rule], t.PipelineItem]] = {
    "split": _split,
    "split_auto": _split_auto,
    "stages": _stages,
    "order": _order,
    "microbatches": _microbatches,
}
